#include "common/listen_address.h"

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

TEST(ListenAddress, ReadsHostAndPort) {
  ASSERT_OK_AND_ASSIGN(const ListenAddress address, ParseListenAddress("127.0.0.1:81", 8090));
  EXPECT_EQ(address.host, "127.0.0.1");
  EXPECT_EQ(address.port, 81);
  EXPECT_TRUE(address.loopback);
}

TEST(ListenAddress, TakesThePortThatIsUsual) {
  EXPECT_EQ(ParseListenAddress("localhost", 8090)->ToString(), "localhost:8090");
  EXPECT_EQ(ParseListenAddress("[::1]", 8090)->ToString(), "[::1]:8090");
  EXPECT_EQ(ParseListenAddress("[::1]:0", 8090)->port, 0);
}

TEST(ListenAddress, KnowsWhoCanReachIt) {
  EXPECT_TRUE(ParseListenAddress("[::1]", 1)->loopback);
  EXPECT_FALSE(ParseListenAddress("[fe80::1%eth0]:80", 1)->loopback);
  EXPECT_TRUE(ParseListenAddress("127.1.2.3", 1)->loopback);
  EXPECT_FALSE(ParseListenAddress("0.0.0.0", 1)->loopback);
  EXPECT_FALSE(ParseListenAddress("[::]:80", 1)->loopback);
  EXPECT_FALSE(ParseListenAddress("10.0.0.1", 1)->loopback);
  EXPECT_TRUE(ParseListenAddress("0.0.0.0:80", 1)->any);
  EXPECT_TRUE(ParseListenAddress("[::]", 1)->any);
  EXPECT_FALSE(ParseListenAddress("10.0.0.0", 1)->any);
}

TEST(ListenAddress, SaysThatASchemeIsTooMuch) {
  EXPECT_THAT(
      ParseListenAddress("http://127.0.0.1:8090", 1),
      StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("begins with http://: say HOST or HOST:PORT alone")));
}

TEST(ListenAddress, RefusesWhatIsNone) {
  for (const char* text : {"",        ":80",           "host:",        "host:x", "host:65536", "host:-1", "::1",
                           "host:1x", "http://host:1", "https://host", "a b",    "host/path",  "h\xff",   "host\n",
                           "[::1",    "::1]",          "[::1]x:80",    "[host]", "[]",         "a[::1]"}) {
    EXPECT_THAT(ParseListenAddress(text, 1), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

TEST(CheckHostExists, NamesTheHostThatDoesNot) {
  const std::string no_name(64, 'a');  // a label of a name has 63 letters at most, so nobody is asked
  EXPECT_THAT(CheckHostExists(*ParseListenAddress(no_name, 1)),
              StatusIs(absl::StatusCode::kNotFound, ::testing::HasSubstr("there is no host '" + no_name)));
  for (const char* const host : {"127.0.0.1", "[::1]", "localhost"}) EXPECT_OK(CheckHostExists(*ParseListenAddress(host, 1)));
}

TEST(LocalHostTowards, IsTheAddressThatThePeerSees) {
  EXPECT_EQ(LocalHostTowards(*ParseListenAddress("127.0.0.1:8090", 0)).value(), "127.0.0.1");
  EXPECT_EQ(LocalHostTowards(*ParseListenAddress("127.3.2.1:8090", 0)).value(), "127.0.0.1");
}

TEST(LocalHostTowards, NamesTheHostThatIsNotKnown) {
  const std::string no_name(64, 'a');  // a label of a name has 63 letters at most, so nobody is asked
  EXPECT_THAT(LocalHostTowards(*ParseListenAddress(no_name + ":8090", 0)),
              StatusIs(absl::StatusCode::kUnavailable, ::testing::HasSubstr(no_name)));
}

TEST(ListenAddress, AUnixSocketHasAPathAlone) {
  ASSERT_OK_AND_ASSIGN(const ListenAddress address, ParseListenAddress("unix:/run/ferry/cluster", 8090));
  EXPECT_EQ(address.unix_path, "/run/ferry/cluster");
  EXPECT_TRUE(address.loopback);
  EXPECT_EQ(address.port, 0);
  EXPECT_EQ(address.ToString(), "unix:/run/ferry/cluster");
  for (const std::string& bad :
       {std::string("unix:"), std::string("unix:relative"), std::string("unix:/a\nb"), "unix:/" + std::string(100, 'x')}) {
    EXPECT_THAT(ParseListenAddress(bad, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace ferry
