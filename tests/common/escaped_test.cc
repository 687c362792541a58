#include "common/escaped.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(Escaped, LeavesTextAsItIs) {
  for (const char* const text : {"", "NVIDIA H200", "Ärger, 日本語, 🚢", "\xC2\xA0"}) EXPECT_EQ(Escaped(text), text);
}

TEST(Escaped, NothingSteersATerminal) {
  EXPECT_EQ(Escaped("a\x1b[2J\nb\x7f"), "a\\x1b[2J\\x0ab\\x7f");
  EXPECT_EQ(Escaped("GPU \u009b2J \u202egnp"), "GPU \\u009b2J \\u202egnp");
}

TEST(Escaped, WhatIsNoUtf8IsShownAsBytes) {
  EXPECT_EQ(Escaped("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(Escaped("\xc0\x80"), "\\xc0\\x80") << "a zero that is spelt too long";
  EXPECT_EQ(Escaped("\xed\xa0\x80"), "\\xed\\xa0\\x80") << "half a pair of UTF-16";
}

TEST(Escaped, LongTextsAreCut) { EXPECT_EQ(Escaped("abcdef", 3), "abc..."); }

}  // namespace
}  // namespace ferry
