#include "gateway/http/short_way.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

namespace ferry {
namespace {

using Went = ShortWay::Went;

class ShortWayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, sockets_), 0);
    way_.Begin(1);
  }
  void TearDown() override {
    for (const int socket : sockets_) ::close(socket);
  }
  std::string Received() {
    std::string all;
    char bytes[65536];
    for (ssize_t n = 0; (n = ::recv(sockets_[1], bytes, sizeof(bytes), MSG_DONTWAIT)) > 0;) all.append(bytes, n);
    return all;
  }

  int sockets_[2] = {-1, -1};
  ShortWay way_;
};

TEST_F(ShortWayTest, IsClosedUntilItIsOpened) {
  EXPECT_EQ(way_.Send(1, "a"), Went::kNot);
  EXPECT_EQ(Received(), "");
}

TEST_F(ShortWayTest, WritesPiecesInTheStreamsFramingWhileItIsOpen) {
  way_.Open(sockets_[0], Framing::kChunked);
  EXPECT_EQ(way_.Send(1, "hello"), Went::kWhole);
  way_.Open(sockets_[0], Framing::kUntilClose);
  EXPECT_EQ(way_.Send(1, "hello"), Went::kWhole);
  EXPECT_EQ(Received(), "5\r\nhello\r\nhello");
  EXPECT_EQ(way_.Close(), "");
  EXPECT_EQ(way_.Send(1, "late"), Went::kNot);
}

TEST_F(ShortWayTest, APieceDoesNotOvertakeThoseThatGoToTheNetworkThread) {
  EXPECT_EQ(way_.Send(1, "first"), Went::kNot);
  EXPECT_EQ(way_.Send(1, "second"), Went::kNot);
  way_.Open(sockets_[0], Framing::kChunked);
  EXPECT_EQ(way_.Send(1, "third"), Went::kNot);
  for (int i = 0; i < 3; ++i) way_.Arrived(1);
  EXPECT_EQ(way_.Send(1, "fourth"), Went::kWhole);
}

TEST_F(ShortWayTest, PiecesOfAnotherRequestNeitherGoNorCount) {
  way_.Open(sockets_[0], Framing::kChunked);
  EXPECT_EQ(way_.Send(2, "of another"), Went::kNot);
  way_.Arrived(2);
  EXPECT_EQ(way_.Send(1, "a"), Went::kWhole);
  EXPECT_EQ(Received(), "1\r\na\r\n");
}

TEST_F(ShortWayTest, WhatTheSocketDoesNotTakeIsLeftForTheNetworkThread) {
  way_.Open(sockets_[0], Framing::kUntilClose);
  const std::string large(16 << 20, 'x');
  EXPECT_EQ(way_.Send(1, large), Went::kPart);
  EXPECT_EQ(way_.Send(1, "behind it"), Went::kNot);
  way_.Open(sockets_[0], Framing::kUntilClose);  // not while something is left
  EXPECT_EQ(way_.Send(1, "behind it"), Went::kNot);
  EXPECT_EQ(Received() + way_.Close(), large);
}

}  // namespace
}  // namespace ferry
