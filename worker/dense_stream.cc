#include "worker/dense_stream.h"

#include <grpcpp/grpcpp.h>
#include <xxhash.h>

#include <utility>

#include "absl/time/clock.h"
#include "common/grpc_status.h"

namespace ferry {
namespace {

constexpr absl::Duration kStreamTimeout = absl::Hours(1);  // a cold 100 GB model over a slow network; the heartbeat ends it sooner
constexpr uint64_t kMaxDimension = uint64_t{1} << 31;

class DenseStream final : public DenseTensorSource {
 public:
  DenseStream(v1::Cluster::StubInterface* cluster, uint32_t worker_id, Incarnation incarnation,
              std::function<void(int64_t)> progress)
      : progress_(std::move(progress)) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + kStreamTimeout));
    v1::StreamDenseTensorsRequest request;
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
      RETURN_IF_ERROR(Annotate(FromGrpcStatus(stream_->Finish()), "StreamDenseTensors"));
      return std::nullopt;
    }
    if (chunk_.rows() > kMaxDimension || chunk_.cols() > kMaxDimension || chunk_.first_row() > kMaxDimension ||
        chunk_.num_rows() > kMaxDimension) {
      return InvalidArgument("tensor '%s' has a chunk of rows %d + %d of %d x %d", chunk_.name(), chunk_.first_row(),
                             chunk_.num_rows(), chunk_.rows(), chunk_.cols());
    }
    const uint64_t checksum = XXH3_64bits(chunk_.data().data(), chunk_.data().size());
    if (checksum != chunk_.xxh3()) {
      return DataLoss("tensor '%s': the chunk at row %d came damaged: its checksum is %016x, want %016x", chunk_.name(),
                      chunk_.first_row(), checksum, chunk_.xxh3());
    }
    bytes_ += static_cast<int64_t>(chunk_.data().size());
    if (progress_) progress_(bytes_);
    return DenseChunk{.name = chunk_.name(),
                      .dtype = static_cast<DType>(chunk_.dtype()),
                      .rows = static_cast<int64_t>(chunk_.rows()),
                      .cols = static_cast<int64_t>(chunk_.cols()),
                      .first_row = static_cast<int64_t>(chunk_.first_row()),
                      .num_rows = static_cast<int64_t>(chunk_.num_rows()),
                      .data = std::as_bytes(std::span(chunk_.data()))};
  }

 private:
  const std::function<void(int64_t)> progress_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderInterface<v1::TensorChunk>> stream_;
  v1::TensorChunk chunk_;
  bool ended_ = false;
  int64_t bytes_ = 0;
};

}  // namespace

std::unique_ptr<DenseTensorSource> OpenDenseStream(v1::Cluster::StubInterface* cluster, uint32_t worker_id,
                                                   Incarnation incarnation, std::function<void(int64_t)> progress) {
  return std::make_unique<DenseStream>(cluster, worker_id, incarnation, std::move(progress));
}

}  // namespace ferry
