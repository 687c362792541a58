// Writes the first inputs of the wire's fuzzers, messages that pass every check, and small models for the GGUF fuzzer into
// corpus/NAME:
//   build/fuzz/bin/make_corpus tests/fuzz/corpus
// To be run again when a message gets a field that the checks want, or an architecture is added; what the fuzzers found since
// then lies beside these.

#include <xxhash.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "common/model/architectures/architectures.h"
#include "common/model/make_model.h"
#include "common/shm/expert_mailbox.h"
#include "ferry/internal/v1/cluster.pb.h"
#include "ferry/internal/v1/worker.pb.h"
#include "ferry/v1/generate.pb.h"
#include "tests/testing/small_assignment.h"

namespace ferry {
namespace {

// What wire_input.h reads.
class Input {
 public:
  Input& Byte(int value) {
    bytes_.push_back(static_cast<char>(value));
    return *this;
  }
  Input& Piece(const std::string& piece) {
    Byte(static_cast<int>(piece.size() & 0xFF)).Byte(static_cast<int>(piece.size() >> 8));
    bytes_ += piece;
    return *this;
  }
  template <typename Message>
  Input& Add(const Message& message) {
    return Piece(message.SerializeAsString()).Byte(0).Byte(0);
  }
  void Write(const std::filesystem::path& path) const {
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes_;
  }

 private:
  std::string bytes_;
};

std::string Floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

std::string Words(const std::vector<uint32_t>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(uint32_t)};
}

internal::v1::StepResponse Answer(uint64_t step) {
  internal::v1::StepResponse response;
  response.set_epoch(1);
  response.set_step(step);
  return response;
}

// The tiny vocabulary of generate_fuzz.cc: 256 bytes, 3 merges, 2 special tokens.
constexpr int kVocab = 261;

void Generate(const std::filesystem::path& folder) {
  v1::GenerateRequest request;
  request.set_text("the t<|call|>");
  request.set_max_tokens(4);
  request.add_stop("zz");
  request.add_stop_token_ids(7);
  request.set_logprobs(2);
  request.mutable_sampling()->set_seed(9);
  request.mutable_sampling()->set_top_k(3);
  request.mutable_sampling()->set_min_p(0.1f);
  Input text;
  text.Byte(0).Add(request);
  for (uint64_t step = 1; step <= 4; ++step) {
    internal::v1::StepResponse response = Answer(step);
    internal::v1::LogitsRow* const row = response.add_logits();
    row->set_log_sum_exp(5);
    for (const uint32_t id : {104, 105, 33}) row->add_ids(id + step);
    row->set_logits(Floats({3, 2.5, 1}));
    text.Add(response);
  }
  text.Write(folder / "text");

  request.Clear();
  for (const uint32_t id : {1, 257, 258}) request.mutable_tokens()->add_ids(id);
  request.set_max_tokens(0);
  request.set_prompt_logprobs(1);
  internal::v1::StepResponse scores = Answer(1);
  for (int i = 0; i < 2; ++i) {
    internal::v1::LogitsRow* const row = scores.add_logits();
    row->set_log_sum_exp(4);
    row->set_target_logit(1);
    row->add_ids(65);
    row->set_logits(Floats({2}));
  }
  Input().Byte(0).Add(request).Add(scores).Write(folder / "score");

  request.Clear();
  request.set_text("a");
  request.set_ignore_eos(true);
  request.set_render_special(true);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_repetition_penalty(1.2f);
  request.mutable_sampling()->set_frequency_penalty(0.5f);
  (*request.mutable_sampling()->mutable_logit_bias())[97] = -3;
  std::vector<float> logits(kVocab, -1);
  logits[98] = 2;
  internal::v1::StepResponse whole = Answer(1);
  whole.add_logits()->set_logits(Floats(logits));
  Input().Byte(0).Add(request).Add(whole).Write(folder / "penalties");
}

void Registrations(const std::filesystem::path& folder) {
  internal::v1::RegisterRequest request;
  request.set_incarnation(11);
  request.set_machine("here");
  request.set_address("127.0.0.1:4711");
  request.set_device("cpu");
  request.set_model_fingerprint(7);
  request.set_wanted_worker_id(1);
  request.set_link_bytes_per_second(5e10);
  internal::v1::RegisterRequest other = request;
  other.set_incarnation(12);
  other.set_machine("there");
  other.set_address("10.0.0.3:80");
  other.clear_wanted_worker_id();
  internal::v1::HeartbeatRequest beat;
  beat.set_worker_id(1);
  beat.set_incarnation(11);
  beat.set_state("ready");
  beat.set_load_progress(1);
  beat.set_expert_slots(8);
  internal::v1::HeartbeatRequest other_beat = beat;
  other_beat.set_worker_id(0);
  other_beat.set_incarnation(12);
  Input()
      .Byte(0)
      .Byte(0)
      .Add(request)
      .Byte(0)
      .Add(other)
      .Byte(1)
      .Add(beat)
      .Byte(0x31)
      .Add(other_beat)
      .Write(folder / "two_workers");
  Input().Byte(0).Byte(0).Add(request).Byte(0xF1).Add(beat).Byte(0).Add(request).Write(folder / "a_worker_that_expires");
}

void Assignment(const std::filesystem::path& folder) {
  internal::v1::RegisterResponse place;
  place.set_worker_id(1);
  place.set_num_workers(2);
  place.set_first_layer(1);
  place.set_end_layer(2);
  place.set_expert_transport("shm");
  place.set_descriptor_socket("ferry-1-2");
  place.set_descriptor_key("0123456789abcdef");
  place.set_mailbox_max_rows(64);
  place.set_mailbox_max_entries(128);
  place.set_heartbeat_interval_seconds(1);
  place.set_heartbeat_timeout_seconds(10);
  place.add_overrides()->set_layer(1);
  place.mutable_overrides(0)->set_place(internal::v1::ExpertOverride::DEVICE);
  place.set_model(SmallModelHeader(2));
  DescribeSmallCache(place.mutable_cache());
  Input().Byte(1).Add(place).Write(folder / "assignment");
}

void DenseChunks(const std::filesystem::path& folder) {
  const auto chunk = [](const char* name, uint64_t rows, uint64_t first_row, uint64_t num_rows, uint32_t dtype,
                        size_t row_bytes) {
    internal::v1::TensorChunk chunk;
    chunk.set_name(name);
    chunk.set_dtype(dtype);
    chunk.set_rows(rows);
    chunk.set_cols(64);
    chunk.set_first_row(first_row);
    chunk.set_num_rows(num_rows);
    chunk.set_data(std::string(num_rows * row_bytes, static_cast<char>(first_row)));
    chunk.set_xxh3(XXH3_64bits(chunk.data().data(), chunk.data().size()));
    return chunk;
  };
  Input()
      .Byte(2)
      .Add(chunk("token_embd.weight", 5, 0, 2, 8, 68))  // Q8_0
      .Add(chunk("token_embd.weight", 5, 2, 3, 8, 68))
      .Add(chunk("blk.0.attn_norm.weight", 1, 0, 1, 0, 256))
      .Write(folder / "dense_chunks");
}

void Cluster(const std::filesystem::path& folder) {
  Registrations(folder);
  Assignment(folder);
  DenseChunks(folder);
}

void Mailboxes(const std::filesystem::path& folder) {
  // Words of the mailbox's control block, uses and entry rows (common/shm/expert_mailbox.cc): a request of kind, layer, num_rows,
  // num_uses, num_entries and its number; where they lie in words is the fuzzer's to vary.
  const auto at = [](Input& input, int word, const std::vector<uint32_t>& words) -> Input& {
    return input.Byte(word & 0xFF).Byte(word >> 8).Piece(Words(words)).Byte(0);
  };
  Input request;
  request.Byte(0).Byte(1);
  at(request, 48, {2, 1, 3, 2, 3});
  at(request, 192, {1, 1, 0, 3, 2, 0});
  at(request, 208, {0, 1, 2});
  at(request, 16, {1});
  request.Write(folder / "mailbox_request");
  Input answer;
  answer.Byte(0).Byte(0);
  at(answer, 64, {0, 0, 2});
  at(answer, 32, {1});
  answer.Write(folder / "mailbox_answer");
  Input spoilt;
  spoilt.Byte(0).Byte(2);
  at(spoilt, 64, {9, 4, 2, 0x64616221});
  spoilt.Write(folder / "mailbox_error");
  Input helper;
  helper.Byte(0).Byte(2);
  at(helper, 224, {static_cast<uint32_t>(PlaceOfHelper(8))});  // the first expert's place: a worker that the request did not name
  helper.Write(folder / "mailbox_helper");
}

void ExpertRequests(const std::filesystem::path& folder) {
  internal::v1::ComputeExpertsRequest compute;
  internal::v1::ExpertRequest& experts = *compute.mutable_request();
  experts.set_worker_id(1);
  experts.set_incarnation(5);
  experts.set_step(9);
  experts.set_layer(2);
  const auto use = [&](uint32_t expert, uint32_t tokens, bool resident) {
    internal::v1::ActivatedExpert* const out = experts.add_uses();
    out->set_expert(expert);
    out->set_tokens(tokens);
    out->set_resident(resident);
  };
  use(0, 2, false);
  use(4, 1, true);
  Input().Byte(1).Byte(0x1F).Add(experts).Write(folder / "plan");
  compute.set_num_rows(2);
  compute.set_rows(Floats({1, 2, 3, 4, 5, 6, 7, 8}));
  for (const uint32_t row : {0, 1, 1}) compute.add_entry_rows(row);
  Input().Byte(2).Add(compute).Write(folder / "compute");
}

void ExpertAnswers(const std::filesystem::path& folder) {
  internal::v1::ExpertPlan plan;
  plan.add_places(internal::v1::ExpertPlan::RESIDENT);
  plan.add_places(internal::v1::ExpertPlan::SHIP);
  internal::v1::ComputeExpertsResponse contributions;
  contributions.set_contributions(Floats(std::vector<float>(16, 0.5f)));
  const std::string record(96, 'r');
  internal::v1::ExpertRecordChunk chunk;
  chunk.set_step(7);
  chunk.set_layer(1);
  chunk.set_expert(2);
  chunk.set_record_bytes(96);
  chunk.set_data(record.substr(0, 60));
  internal::v1::ExpertRecordChunk last = chunk;
  last.set_offset(60);
  last.set_data(record.substr(60));
  last.set_xxh3(XXH3_64bits(record.data(), record.size()));
  Input().Byte(3).Add(plan).Add(contributions).Add(chunk).Add(last).Write(folder / "answers");
}

void Experts(const std::filesystem::path& folder) {
  Mailboxes(folder);
  ExpertRequests(folder);
  ExpertAnswers(folder);
  Input share;
  share.Byte(4).Byte(3).Byte(4);
  for (const int value : {2, 0, 5, 0, 3, 1, 2, 9, 7, 0, 1, 2, 3, 4, 5, 6, 4, 9, 8, 7, 6}) share.Byte(value);
  share.Write(folder / "host_share");
}

// What descriptors_fuzz.cc reads: its samples begin with a good arena and a good mailbox.
void Descriptors(const std::filesystem::path& folder) {
  Input().Byte(0).Byte(0).Byte(0).Piece("key of 8").Write(folder / "caller_with_the_key");
  Input().Byte(0).Byte(3).Byte(2).Piece("key of 9").Byte(0).Byte(0).Piece("key of 8").Write(folder / "caller_that_guesses");
  Input().Byte(0).Byte(0).Byte(0).Piece(std::string(65, 'k')).Write(folder / "caller_with_a_long_key");
  Input().Byte(1).Byte(2).Byte(0).Piece("\2").Write(folder / "server");
  Input().Byte(1).Byte(17).Byte(0).Piece("\20").Write(folder / "server_with_one_too_many");
  Input().Byte(1).Byte(2).Byte(5).Piece("\2").Write(folder / "server_with_huge_memory");
  Input().Byte(1).Byte(0).Byte(0).Piece(std::string(1, '\0')).Write(folder / "server_with_nothing");
}

void StepRequests(const std::filesystem::path& folder) {
  internal::v1::StepRequest request;
  request.set_epoch(1);
  request.set_step(1);
  request.set_timeout_seconds(30);
  internal::v1::StepSequence* sequence = request.add_sequences();
  sequence->set_slot(2);
  sequence->set_first_position(40);
  sequence->set_num_tokens(3);
  for (const uint32_t id : {4, 0, 49}) sequence->add_token_ids(id);
  for (const uint32_t block : {6, 1}) sequence->add_blocks(block);
  internal::v1::LogitsWanted* wanted = sequence->add_logits();
  wanted->set_offset(0);
  wanted->set_top_n(20);
  wanted = sequence->add_logits();
  wanted->set_offset(2);
  wanted->set_top_n(100);
  wanted->set_target(49);
  sequence = request.add_sequences();
  sequence->set_slot(0);
  sequence->set_num_tokens(1);
  sequence->add_token_ids(1);
  sequence->add_blocks(3);
  Input().Byte(0).Byte(0).Add(request).Write(folder / "request");
}

void StepResponses(const std::filesystem::path& folder) {
  internal::v1::StepResponse response;
  response.set_epoch(3);
  response.set_step(4);
  response.mutable_experts()->set_activated(5);
  Input().Byte(1).Byte(0).Add(response).Write(folder / "response");
  internal::v1::LogitsRow* row = response.add_logits();
  row->set_log_sum_exp(3);
  row->add_ids(5);
  row->add_ids(1);
  row->set_logits(Floats({2, 1}));
  response.add_logits()->set_logits(Floats({1, 2, 3, 4, 5, 6}));
  Input().Byte(1).Byte(0x82).Add(response).Write(folder / "response_with_logits");
  response.Clear();
  response.set_epoch(3);
  response.set_step(4);
  response.set_code(8);
  response.set_message("out of memory");
  Input().Byte(1).Byte(0).Add(response).Write(folder / "response_with_error");
}

void Steps(const std::filesystem::path& folder) {
  StepRequests(folder);
  StepResponses(folder);
  const auto rows = [](uint64_t step, uint32_t first_row, uint32_t num_rows) {
    internal::v1::Activations message;
    message.set_epoch(1);
    message.set_step(step);
    message.set_first_row(first_row);
    message.set_num_rows(num_rows);
    message.set_data(Floats(std::vector<float>(num_rows * 2, 1.5f)));
    return message;
  };
  internal::v1::Activations failure;
  failure.set_epoch(1);
  failure.set_step(2);
  failure.set_error("it failed");
  Input()
      .Byte(2)
      .Byte(0)
      .Add(rows(1, 0, 4))
      .Byte(1)
      .Byte(0)
      .Add(rows(1, 4, 2))
      .Byte(1)
      .Byte(0)
      .Add(failure)
      .Byte(1)
      .Byte(0)
      .Add(rows(3, 0, 6))
      .Byte(1)
      .Write(folder / "activations");
}

// A model of each architecture, as small as its parts allow.
void Models(const std::filesystem::path& folder) {
  for (const Architecture& architecture : Architectures()) {
    MakeModelOptions options = {.architecture = std::string(architecture.name),
                                .layers = 2,
                                .experts = 4,
                                .n_embd = 32,
                                .n_ff = 32,
                                .heads = 2,
                                .kv_heads = 1,
                                .head_dim = 48,
                                .vocab = 261,
                                .yarn_original_context = 64,
                                .rope_dims = 16,
                                .dense_layers = 1,
                                .dense_ff = 32,
                                .shared_experts = 1,
                                .full_interval = 2,
                                .delta_key_heads = 1,
                                .delta_heads = 2,
                                .delta_dim = 16,
                                .sigmoid = true,
                                .groups = 2,
                                .groups_used = 1,
                                .q_rank = 32,
                                .kv_rank = 32,
                                .value_dim = 16,
                                .expert_dtype = DType::kQ4_0,
                                .tied_output = true};
    const std::vector<std::byte> bytes = MakeModelBytes(options).value();
    std::filesystem::create_directories(folder);
    std::ofstream(folder / ("model_" + options.architecture), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_corpus FOLDER\n");
    return 2;
  }
  const std::filesystem::path corpus = argv[1];
  ferry::Generate(corpus / "generate");
  ferry::Cluster(corpus / "cluster");
  ferry::Descriptors(corpus / "descriptors");
  ferry::Experts(corpus / "experts");
  ferry::Steps(corpus / "steps");
  ferry::Models(corpus / "gguf");
}
