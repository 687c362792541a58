#include "worker/dense_stream.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "common/grpc_status.h"
#include "common/rpc/rpc_deadline.h"
#include "worker/dense_chunk.h"

namespace ferry {
namespace {

constexpr absl::Duration kStreamTimeout =
    absl::Hours(1);  // a cold 100 GB model over a slow network; the heartbeat ends it sooner

class DenseStream final : public DenseTensorSource {
 public:
  DenseStream(internal::v1::Cluster::StubInterface* cluster, uint32_t worker_id, Incarnation incarnation,
              std::function<void(int64_t)> progress)
      : progress_(std::move(progress)) {
    context_.set_deadline(RpcDeadline(kStreamTimeout));
    internal::v1::StreamDenseTensorsRequest request;
    request.set_worker_id(worker_id);
    request.set_incarnation(incarnation.value());
    stream_ = cluster->StreamDenseTensors(&context_, request);
  }
  ~DenseStream() override {
    if (ended_) return;
    context_.TryCancel();
    stream_->Finish();
  }

  absl::StatusOr<std::optional<DenseChunk>> Next() override {
    if (ended_) return std::nullopt;
    if (!stream_->Read(&chunk_)) {
      ended_ = true;
      RETURN_IF_ERROR(Annotate(FromGrpcStatus(stream_->Finish()), kDenseStreamCall));
      return std::nullopt;
    }
    ASSIGN_OR_RETURN(const DenseChunk chunk, DenseChunkFromProto(chunk_));
    bytes_ += static_cast<int64_t>(chunk.data.size());
    if (progress_) progress_(bytes_);
    return chunk;
  }

 private:
  const std::function<void(int64_t)> progress_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderInterface<internal::v1::TensorChunk>> stream_;
  internal::v1::TensorChunk chunk_;
  bool ended_ = false;
  int64_t bytes_ = 0;
};

}  // namespace

std::unique_ptr<DenseTensorSource> OpenDenseStream(internal::v1::Cluster::StubInterface* cluster, uint32_t worker_id,
                                                   Incarnation incarnation, std::function<void(int64_t)> progress) {
  return std::make_unique<DenseStream>(cluster, worker_id, incarnation, std::move(progress));
}

}  // namespace ferry
