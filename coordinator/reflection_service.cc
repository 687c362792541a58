#include "coordinator/reflection_service.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/grpcpp.h>

#include <set>

#include "common/grpc_status.h"
#include "coordinator/raw_message.h"

namespace ferry {
namespace {

using google::protobuf::DescriptorPool;
using google::protobuf::FileDescriptor;
namespace v1alpha = grpc::reflection::v1alpha;

constexpr WireBounds kReflectionBounds = {.max_fields = 16};
constexpr size_t kMaxQuestionBytes = 4096;

// `file` and all that it imports, each once.
void AddFiles(const FileDescriptor& file, std::set<const FileDescriptor*>* known, v1alpha::FileDescriptorResponse* files) {
  if (!known->insert(&file).second) return;
  google::protobuf::FileDescriptorProto proto;
  file.CopyTo(&proto);
  files->add_file_descriptor_proto(proto.SerializeAsString());
  for (int i = 0; i < file.dependency_count(); ++i) AddFiles(*file.dependency(i), known, files);
}

void SetError(grpc::StatusCode code, const std::string& message, v1alpha::ServerReflectionResponse* response) {
  response->mutable_error_response()->set_error_code(code);
  response->mutable_error_response()->set_error_message(message);
}

void SetFiles(const FileDescriptor* file, v1alpha::ServerReflectionResponse* response) {
  if (file == nullptr) return SetError(grpc::StatusCode::NOT_FOUND, "there is none of that name", response);
  std::set<const FileDescriptor*> known;
  AddFiles(*file, &known, response->mutable_file_descriptor_response());
}

// Questions and answers of one stream, one after the other.
class Conversation final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>, public MessageReads::Read {
 public:
  Conversation(MessageReads* reads, grpc::CallbackServerContext* context, const std::vector<std::string>& services)
      : reads_(*reads), context_(*context), services_(services) {
    reads_.Begin(this, context_.peer());
  }

  void Start() override { StartRead(&question_); }
  void GiveUp() override { context_.TryCancel(); }
  void Refuse(const absl::Status& status) override { Finish(ToGrpcStatus(status)); }

  void OnReadDone(bool ok) override {
    reads_.Ended(this);
    const absl::Status status = ok ? Answer() : absl::OkStatus();
    if (ok && status.ok()) {
      StartWrite(&answer_);
    } else {
      Finish(ToGrpcStatus(status));
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      reads_.Begin(this, context_.peer());
    } else {
      Finish(grpc::Status::CANCELLED);
    }
  }
  void OnDone() override { delete this; }

 private:
  absl::Status Answer() {
    if (question_.Length() > kMaxQuestionBytes) {
      return InvalidArgument("the question has %d bytes, want at most %d", question_.Length(), kMaxQuestionBytes);
    }
    v1alpha::ServerReflectionResponse response;
    v1alpha::ServerReflectionRequest& request = *response.mutable_original_request();
    RETURN_IF_ERROR(ParseBounded(question_, kReflectionBounds, &request));
    response.set_valid_host(request.host());
    const DescriptorPool& pool = *DescriptorPool::generated_pool();
    switch (request.message_request_case()) {
      case v1alpha::ServerReflectionRequest::kListServices:
        for (const std::string& name : services_) response.mutable_list_services_response()->add_service()->set_name(name);
        break;
      case v1alpha::ServerReflectionRequest::kFileByFilename:
        SetFiles(pool.FindFileByName(request.file_by_filename()), &response);
        break;
      case v1alpha::ServerReflectionRequest::kFileContainingSymbol:
        SetFiles(pool.FindFileContainingSymbol(request.file_containing_symbol()), &response);
        break;
      default:
        SetError(grpc::StatusCode::UNIMPLEMENTED, "services, files and symbols can be asked for", &response);
    }
    return Serialize(response, &answer_);
  }

  MessageReads& reads_;
  grpc::CallbackServerContext& context_;
  const std::vector<std::string>& services_;
  grpc::ByteBuffer question_, answer_;
};

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ReflectionService::ServerReflectionInfo(
    grpc::CallbackServerContext* context) {
  return new Conversation(&reads_, context, services_);
}

}  // namespace ferry
