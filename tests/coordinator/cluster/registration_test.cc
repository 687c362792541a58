#include "coordinator/cluster/registration.h"

#include <cmath>
#include <limits>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

RegistrationRules Rules() { return {.model_fingerprint = 7, .machine = "here", .expert_transport = "auto"}; }

internal::v1::RegisterRequest Good() {
  internal::v1::RegisterRequest request;
  request.set_incarnation(5);
  request.set_machine("here");
  request.set_address("127.0.0.1:4711");
  request.set_device("cpu avx2");
  request.set_link_bytes_per_second(1e10);
  return request;
}

TEST(CheckRegistration, TakesAWorkerAtItsWord) {
  internal::v1::RegisterRequest request = Good();
  request.set_wanted_worker_id(3);
  ASSERT_OK_AND_ASSIGN(const Registration registration, CheckRegistration(request, Rules()));
  EXPECT_EQ(registration.info.incarnation, Incarnation(5));
  EXPECT_EQ(registration.info.address, "127.0.0.1:4711");
  EXPECT_EQ(registration.wanted, WorkerId(3));
  EXPECT_EQ(registration.link_bytes_per_second, 1e10);
}

TEST(CheckRegistration, AUnixSocketIsOfTheSameHost) {
  internal::v1::RegisterRequest request = Good();
  request.set_address("unix:/run/ferry/worker-1");
  ASSERT_OK_AND_ASSIGN(const Registration registration, CheckRegistration(request, Rules()));
  EXPECT_TRUE(registration.info.loopback);
  request.set_machine("there");
  EXPECT_THAT(CheckRegistration(request, Rules()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--listen")));
}

TEST(CheckRegistration, ChoosesSharedMemoryOnOneHostAlone) {
  EXPECT_EQ(CheckRegistration(Good(), Rules())->expert_transport, "shm");
  internal::v1::RegisterRequest request = Good();
  request.set_machine("there");
  request.set_address("10.0.0.2:80");
  EXPECT_EQ(CheckRegistration(request, Rules())->expert_transport, "tcp");
}

struct BadRegistration {
  const char* name;
  void (*spoil)(internal::v1::RegisterRequest&);
  const char* message;
};
void PrintTo(const BadRegistration& bad, std::ostream* out) { *out << bad.name; }
class CheckRegistrationRefuses : public ::testing::TestWithParam<BadRegistration> {};

TEST_P(CheckRegistrationRefuses, NamingTheField) {
  internal::v1::RegisterRequest request = Good();
  GetParam().spoil(request);
  EXPECT_THAT(CheckRegistration(request, Rules()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().message)));
}

using R = internal::v1::RegisterRequest;
INSTANTIATE_TEST_SUITE_P(
    Fields, CheckRegistrationRefuses,
    ::testing::Values(
        BadRegistration{"AnotherModel", [](R& r) { r.set_model_fingerprint(8); }, "another model"},
        BadRegistration{"NoAddress", [](R& r) { r.clear_address(); }, "address is empty"},
        BadRegistration{"AddressWithoutPort", [](R& r) { r.set_address("10.0.0.1"); }, "HOST:PORT"},
        BadRegistration{"AddressThatIsNone", [](R& r) { r.set_address("10.0.0.1:99999"); }, "address"},
        BadRegistration{"EveryInterface", [](R& r) { r.set_address("0.0.0.0:80"); }, "leads nowhere"},
        BadRegistration{"LoopbackElsewhere", [](R& r) { r.set_machine("there"); }, "--listen"},
        BadRegistration{"LongDevice", [](R& r) { r.set_device(std::string(300, 'x')); }, "device has 300 bytes"},
        BadRegistration{"EscapeSequence", [](R& r) { r.set_device("\x1b[2J"); }, "device is no printable text"},
        BadRegistration{"C1EscapeSequence", [](R& r) { r.set_device("GPU \u009b2J"); }, "'GPU \\u009b2J'"},
        BadRegistration{"DirectionOfWriting", [](R& r) { r.set_device("\u202egnp"); }, "device is no printable text"},
        BadRegistration{"NoUtf8", [](R& r) { r.set_machine("\xff"); }, "machine is not UTF-8"},
        BadRegistration{"NoRate", [](R& r) { r.set_link_bytes_per_second(kNan); }, "link_bytes_per_second"},
        BadRegistration{"EndlessRate", [](R& r) { r.set_link_bytes_per_second(kInfinity); }, "link_bytes_per_second"},
        BadRegistration{"Transport", [](R& r) { r.set_expert_transport("pigeon"); }, "want auto, shm, tcp or grpc"},
        BadRegistration{"SharedMemoryElsewhere",
                        [](R& r) {
                          r.set_machine("there");
                          r.set_address("10.0.0.2:80");
                          r.set_expert_transport("shm");
                        },
                        "another host"}),
    [](const auto& info) { return info.param.name; });

TEST(CheckHeartbeat, RefusesWhatIsNoStateOrNumber) {
  internal::v1::HeartbeatRequest beat;
  beat.set_state("loading");
  beat.set_load_progress(0.5);
  EXPECT_OK(CheckHeartbeat(beat));
  const auto refused = [&](auto spoil, const char* why) {
    internal::v1::HeartbeatRequest bad = beat;
    spoil(bad);
    EXPECT_THAT(CheckHeartbeat(bad), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused([](auto& bad) { bad.set_state("asleep"); }, "state is 'asleep'");
  refused([](auto& bad) { bad.set_load_progress(2); }, "load_progress is 2");
  refused([](auto& bad) { bad.set_link_bytes_per_second(-1); }, "link_bytes_per_second is -1");
  refused([](auto& bad) { bad.set_link_bytes_per_second(kNan); }, "link_bytes_per_second is nan");
  refused([](auto& bad) { bad.set_expert_slots(1u << 31); }, "expert_slots");
  refused([](auto& bad) { bad.set_expert_flops_per_second(kNan); }, "expert_flops_per_second");
  refused([](auto& bad) { bad.set_expert_read_bytes_per_second(-kInfinity); }, "expert_read_bytes_per_second");
  refused([](auto& bad) { bad.set_operation_seconds(kInfinity); }, "operation_seconds");
  refused([](auto& bad) { bad.set_exchange_seconds(-1); }, "exchange_seconds is -1");
  refused([](auto& bad) { bad.set_row_seconds(kNan); }, "row_seconds is nan");
  refused([](auto& bad) { bad.mutable_hidden_states()->set_way("\x1b[2J"); }, "hidden_states.way is no printable text");
  refused([](auto& bad) { bad.mutable_hidden_states()->set_why(std::string(300, 'x')); }, "hidden_states.why has 300 bytes");
  refused([](auto& bad) { bad.mutable_hidden_states()->add_times()->set_nccl_seconds(kNan); }, "nccl_seconds is nan");
  refused(
      [](auto& bad) {
        for (int i = 0; i < 17; ++i) bad.mutable_hidden_states()->add_times();
      },
      "has 17 sizes, want at most 16");
}

}  // namespace
}  // namespace ferry
