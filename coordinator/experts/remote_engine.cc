#include "coordinator/experts/remote_engine.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "common/expert_transfer.h"

namespace ferry {
namespace {

void Append(std::vector<std::byte>& frame, const void* data, size_t bytes) {
  const std::byte* const first = static_cast<const std::byte*>(data);
  frame.insert(frame.end(), first, first + bytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteEngine>> RemoteEngine::Connect(const ListenAddress& address, const DataIdentity& identity,
                                                                    const FirstWords& words, Deadline deadline) {
  ASSIGN_OR_RETURN(std::unique_ptr<DataConnection> connection, DataConnection::Connect(address, identity, deadline));
  RETURN_IF_ERROR(Introduce(*connection, words, deadline));
  return std::unique_ptr<RemoteEngine>(new RemoteEngine(std::move(connection), words));
}

absl::Status RemoteEngine::Send(const RequestHeader& header, std::span<const uint32_t> ids, Deadline deadline) {
  const std::array<std::byte, kHeaderBytes> encoded = Encode(header);
  std::memcpy(frame_.data(), encoded.data(), encoded.size());
  if (!ids.empty()) std::memcpy(frame_.data() + kHeaderBytes, ids.data(), ids.size_bytes());
  sent_ = header;
  return connection_->Send(frame_, deadline);
}

absl::Status RemoteEngine::Start(const ExpertRequest& request, std::span<const float> rows, Deadline deadline) {
  // The rows that this share names, in order, and their numbers among themselves.
  ExpertRequest compact = request;
  std::vector<int32_t> named = request.entry_rows;
  std::sort(named.begin(), named.end());
  named.erase(std::unique(named.begin(), named.end()), named.end());
  for (int32_t& row : compact.entry_rows) {
    row = static_cast<int32_t>(std::lower_bound(named.begin(), named.end(), row) - named.begin());
  }
  compact.num_rows = static_cast<int32_t>(named.size());
  RETURN_IF_ERROR(CheckExpertRequest(compact, words_.shape, words_.num_layers));
  const std::vector<uint32_t> ids = EncodeIds(compact);
  frame_.resize(kHeaderBytes + ids.size() * sizeof(uint32_t));
  const size_t row_floats = static_cast<size_t>(words_.shape.n_embd);
  for (const int32_t row : named) Append(frame_, rows.subspan(row * row_floats, row_floats).data(), row_floats * sizeof(float));
  return Send({.kind = WireKind::kCompute,
               .number = sent_.number + 1,
               .step = request.step,
               .layer = request.layer,
               .num_rows = compact.num_rows,
               .num_uses = static_cast<int32_t>(compact.uses.size()),
               .num_entries = static_cast<int32_t>(compact.entry_rows.size())},
              ids, deadline);
}

absl::StatusOr<RemoteAnswer> RemoteEngine::Finish(std::span<const int32_t> outs, std::span<float> contributions,
                                                  Deadline deadline) {
  absl::Status said;
  bool waited = false;
  ASSIGN_OR_RETURN(const AnswerHeader answer, ReceiveAnswerHeader(*connection_, sent_, deadline, &said, &waited));
  RETURN_IF_ERROR(said);
  if (static_cast<int32_t>(outs.size()) != answer.num_entries)
    return Internal("%d outs, want %d", outs.size(), answer.num_entries);
  const size_t row_floats = static_cast<size_t>(words_.shape.n_embd);
  for (size_t first = 0; first < outs.size();) {  // entries that follow each other here as well come in one piece
    size_t end = first + 1;
    while (end < outs.size() && outs[end] == outs[end - 1] + 1) ++end;
    const std::span<float> rows = contributions.subspan(outs[first] * row_floats, (end - first) * row_floats);
    RETURN_IF_ERROR(connection_->Receive(std::as_writable_bytes(rows), deadline));
    first = end;
  }
  return RemoteAnswer{.computed_seconds = answer.seconds, .waited = waited};
}

absl::StatusOr<double> RemoteEngine::Probe(int64_t rows, Deadline deadline) {
  std::vector<float> back(rows * words_.shape.n_embd);
  std::vector<int32_t> outs(rows);
  for (int64_t i = 0; i < rows; ++i) outs[i] = static_cast<int32_t>(i);
  frame_.assign(kHeaderBytes + back.size() * sizeof(float), std::byte{});
  const Stopwatch asked;
  RETURN_IF_ERROR(Send({.kind = WireKind::kProbe,
                        .number = sent_.number + 1,
                        .num_rows = static_cast<int32_t>(rows),
                        .num_entries = static_cast<int32_t>(rows)},
                       {}, deadline));
  RETURN_IF_ERROR(Finish(outs, back, deadline).status());
  return asked.Seconds();
}

absl::StatusOr<ExchangeCost> RemoteEngine::Measure(Deadline deadline) {
  constexpr int64_t kMostRows = 64;  // a host without work is measured every few seconds
  const int64_t most_rows = std::min({kMostRows, words_.shape.max_rows, words_.shape.max_entries});
  return MeasureExchange(most_rows, [&](int64_t rows) { return Probe(rows, deadline); });
}

}  // namespace ferry
