#include "worker/record_assembler.h"

#include <xxhash.h>

#include <algorithm>
#include <ostream>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

constexpr uint64_t kStep = 5;
constexpr ExpertId kId = {.layer = 2, .expert = 3};

std::string Record() {
  std::string record;
  for (int i = 0; i < 100; ++i) record += static_cast<char>(i * 7);
  return record;
}

// The record in chunks of 40 bytes, as a coordinator sends it.
std::vector<internal::v1::ExpertRecordChunk> Chunks() {
  const std::string record = Record();
  std::vector<internal::v1::ExpertRecordChunk> chunks;
  for (size_t offset = 0; offset < record.size(); offset += 40) {
    internal::v1::ExpertRecordChunk& chunk = chunks.emplace_back();
    chunk.set_step(kStep);
    chunk.set_layer(kId.layer);
    chunk.set_expert(kId.expert);
    chunk.set_record_bytes(record.size());
    chunk.set_offset(offset);
    chunk.set_data(record.substr(offset, 40));
  }
  chunks.back().set_xxh3(XXH3_64bits(record.data(), record.size()));
  return chunks;
}

absl::Status Assemble(const std::vector<internal::v1::ExpertRecordChunk>& chunks, std::vector<std::byte>& buffer) {
  buffer.assign(100, std::byte{0});
  RecordAssembler assembler(kStep, kId, buffer);
  for (const internal::v1::ExpertRecordChunk& chunk : chunks) RETURN_IF_ERROR(assembler.Add(chunk));
  return assembler.Finish();
}

TEST(RecordAssembler, PutsChunksTogether) {
  std::vector<std::byte> buffer;
  ASSERT_OK(Assemble(Chunks(), buffer));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(buffer.data()), buffer.size()), Record());
}

struct SpoiltRecord {
  const char* name;
  void (*spoil)(std::vector<internal::v1::ExpertRecordChunk>&);
  absl::StatusCode code;
  const char* message;
};
void PrintTo(const SpoiltRecord& spoilt, std::ostream* out) { *out << spoilt.name; }

class RecordAssemblerRefuses : public testing::TestWithParam<SpoiltRecord> {};

TEST_P(RecordAssemblerRefuses, NamingWhatIsWrong) {
  std::vector<internal::v1::ExpertRecordChunk> chunks = Chunks();
  GetParam().spoil(chunks);
  std::vector<std::byte> buffer;
  EXPECT_THAT(Assemble(chunks, buffer), StatusIs(GetParam().code, HasSubstr(GetParam().message)));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kLoss = absl::StatusCode::kDataLoss;
using Chunk = std::vector<internal::v1::ExpertRecordChunk>;
INSTANTIATE_TEST_SUITE_P(
    Chunks, RecordAssemblerRefuses,
    testing::Values(
        SpoiltRecord{"AStaleStep", [](Chunk& c) { c[1].set_step(4); }, kInvalid, "step is 4, want 5"},
        SpoiltRecord{"AnotherLayer", [](Chunk& c) { c[0].set_layer(1); }, kInvalid, "layer is 1, want 2"},
        SpoiltRecord{"AnotherExpert", [](Chunk& c) { c[2].set_expert(4); }, kInvalid, "expert is 4, want 3"},
        SpoiltRecord{"AnExpertOfMinusOne", [](Chunk& c) { c[0].set_expert(UINT32_MAX); }, kInvalid, "expert"},
        SpoiltRecord{"AnotherSize", [](Chunk& c) { c[0].set_record_bytes(101); }, kInvalid, "record_bytes is 101, want 100"},
        SpoiltRecord{"AGap", [](Chunk& c) { c.erase(c.begin() + 1); }, kInvalid, "offset is 80, want 40"},
        SpoiltRecord{"ARepeatedChunk", [](Chunk& c) { c[1] = c[0]; }, kInvalid, "offset is 0, want 40"},
        SpoiltRecord{"AnOffsetFarAway", [](Chunk& c) { c[1].set_offset(UINT64_MAX); }, kInvalid, "offset"},
        SpoiltRecord{"TooMuchData", [](Chunk& c) { c[2].set_data(std::string(21, 'x')); }, kInvalid,
                     "data has 21 bytes, want 1 to 20"},
        SpoiltRecord{"NoData", [](Chunk& c) { c[1].clear_data(); }, kInvalid, "data has 0 bytes"},
        SpoiltRecord{"AChunkAfterTheEnd", [](Chunk& c) { c.push_back(c.back()); }, kInvalid, "offset is 80, want 100"},
        SpoiltRecord{"AFlippedBit", [](Chunk& c) { (*c[1].mutable_data())[7] ^= 1; }, kLoss, "came damaged"},
        SpoiltRecord{"AnotherChecksum", [](Chunk& c) { c[2].set_xxh3(1); }, kLoss, "came damaged"},
        SpoiltRecord{"AnEarlyEnd", [](Chunk& c) { c.pop_back(); }, kLoss, "ended after 80 of 100"},
        SpoiltRecord{"Nothing", [](Chunk& c) { c.clear(); }, kLoss, "ended after 0 of 100"}),
    [](const testing::TestParamInfo<SpoiltRecord>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace ferry
