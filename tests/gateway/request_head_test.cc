#include "gateway/http/request_head.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ferry {
namespace {

constexpr char kHost[] = "Host: localhost\r\n";

int StatusOfHead(const std::string& head) {
  HeadError error = {.status = 200};
  const bool taken = ParseRequestHead(head, &error).has_value();
  EXPECT_EQ(taken, error.status == 200);
  EXPECT_EQ(taken, error.message.empty());
  return error.status;
}
int StatusWith(const std::string& headers) { return StatusOfHead(std::string("POST / HTTP/1.1\r\n") + kHost + headers + "\r\n"); }

TEST(RequestHead, ReadsWhatARouteNeeds) {
  HeadError error;
  const auto head =
      ParseRequestHead("POST /v1/models?a=b HTTP/1.1\r\nHOST: x\r\nContent-Length:  12 \r\nExpect: 100-continue\r\n\r\n", &error);
  ASSERT_TRUE(head) << error.message;
  EXPECT_EQ(head->request.method, "POST");
  EXPECT_EQ(head->request.path, "/v1/models");
  EXPECT_EQ(head->request.query, "a=b");
  EXPECT_EQ(head->request.Header("host"), "x");
  EXPECT_EQ(head->request.Header("absent"), "");
  EXPECT_EQ(head->content_length, 12u);
  EXPECT_TRUE(head->keep_alive);
  EXPECT_TRUE(head->expects_continue);
}

TEST(RequestHead, KeepsAConnectionUnlessToldOrOfHttp10) {
  HeadError error;
  EXPECT_FALSE(ParseRequestHead("GET / HTTP/1.0\r\n\r\n", &error)->keep_alive);
  EXPECT_FALSE(ParseRequestHead("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, Close\r\n\r\n", &error)->keep_alive);
  EXPECT_TRUE(ParseRequestHead("GET / HTTP/1.1\r\nHost: x\r\nConnection: disclose\r\n\r\n", &error)->keep_alive);
}

TEST(RequestHead, RefusesWhatOtherServersReadDifferently) {
  EXPECT_EQ(StatusWith("Content-Length: 5\r\nContent-Length: 5\r\n"), 400);
  EXPECT_EQ(StatusWith("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400);
  EXPECT_EQ(StatusWith("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), 400);
  EXPECT_EQ(StatusWith("Transfer-Encoding: gzip, chunked\r\n"), 501);
  EXPECT_EQ(StatusWith("Transfer-Encoding: xchunked\r\n"), 501);
  EXPECT_EQ(StatusWith("Transfer-Encoding : chunked\r\n"), 400);
  EXPECT_EQ(StatusWith("Transfer-Encoding\t: chunked\r\n"), 400);
  EXPECT_EQ(StatusWith(" Transfer-Encoding: chunked\r\n"), 400);
  EXPECT_EQ(StatusWith("X: y\r\n z\r\n"), 400);
  EXPECT_EQ(StatusWith("X: y\n"), 400);
  EXPECT_EQ(StatusWith("X: y\rTransfer-Encoding: chunked\r\n"), 400);
  EXPECT_EQ(StatusWith(std::string("X: a\0b\r\n", 8)), 400);
  EXPECT_EQ(StatusWith("NoColon\r\n"), 400);
  EXPECT_EQ(StatusWith(": nameless\r\n"), 400);
  EXPECT_EQ(StatusWith("Host: other\r\n"), 400);
  EXPECT_EQ(StatusWith("Content-Encoding: gzip\r\n"), 415);
  EXPECT_EQ(StatusWith("Expect: tea\r\n"), 417);
  EXPECT_EQ(StatusWith("Transfer-Encoding: chunked\r\n"), 200);
}

TEST(RequestHead, RefusesLengthsThatAreNoNumbers) {
  for (const char* const length : {"-1", "+1", "0x10", "1 2", "5,5", "", "1e3", "99999999999999999999999"}) {
    EXPECT_EQ(StatusWith(std::string("Content-Length: ") + length + "\r\n"), 400) << length;
  }
}

TEST(RequestHead, RefusesLinesThatAreNoRequest) {
  for (const char* const line : {"GET /", "GET  / HTTP/1.1", "GET / x HTTP/1.1", "GET http://x/ HTTP/1.1", "GET * HTTP/1.1",
                                 "G\tT / HTTP/1.1", "GET /\x7f HTTP/1.1", "GET /\xc3\xa9 HTTP/1.1", " / HTTP/1.1", ""}) {
    EXPECT_EQ(StatusOfHead(std::string(line) + "\r\n" + kHost + "\r\n"), 400) << line;
  }
  EXPECT_EQ(StatusOfHead(std::string("GET / HTTP/2.0\r\n") + kHost + "\r\n"), 505);
  EXPECT_EQ(StatusOfHead(std::string("GET / http/1.1\r\n") + kHost + "\r\n"), 505);
  EXPECT_EQ(StatusOfHead("GET / HTTP/1.1\r\n\r\n"), 400);
  EXPECT_EQ(StatusOfHead("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
}

TEST(RequestHead, RefusesTooManyHeaders) {
  std::string headers;
  for (int i = 0; i < kMaxRequestHeaders - 1; ++i) headers += "X-" + std::to_string(i) + ": y\r\n";
  EXPECT_EQ(StatusWith(headers), 200);
  EXPECT_EQ(StatusWith(headers + "Z: y\r\n"), 431);
}

TEST(RequestHead, LeavesPathsAsTheyWereWritten) {
  HeadError error;
  EXPECT_EQ(ParseRequestHead("GET /health/..//%2e%2e/v1 HTTP/1.1\r\nHost: x\r\n\r\n", &error)->request.path,
            "/health/..//%2e%2e/v1");
}

}  // namespace
}  // namespace ferry
