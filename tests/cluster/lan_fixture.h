#pragma once

// What tests on several hosts (lan.h) have in common.

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/strip.h"
#include "tests/cluster/lan.h"
#include "tests/testing/status_matchers.h"

namespace ferry {

class LanTest : public ::testing::Test {
 protected:
  // Skips the test where this machine lacks what hosts are made of: a derived SetUp then ends as well (IsSkipped).
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Lan>> lan = Lan::Create();
    if (absl::IsFailedPrecondition(lan.status())) GTEST_SKIP() << lan.status().message();
    ASSERT_OK(lan.status());
    lan_ = *std::move(lan);
  }

  // What `ferry cluster-token FLAGS` prints on a host, without the line's end.
  static absl::StatusOr<std::string> ClusterToken(Host& host, const std::string& flags, absl::Duration timeout) {
    ASSIGN_OR_RETURN(const std::string token, host.Run("./ferry cluster-token" + flags, timeout));
    return std::string(absl::StripSuffix(token, "\n"));
  }

  std::unique_ptr<Lan> lan_;
};

}  // namespace ferry
