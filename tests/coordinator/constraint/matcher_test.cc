#include "coordinator/constraint/matcher.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "coordinator/constraint/gbnf.h"
#include "tests/coordinator/constraint/constraint_testing.h"
#include "tests/testing/status_matchers.h"

namespace ferry::constraint {
namespace {

const SmallVocabulary& Vocabulary() {
  static const auto& vocabulary = *new SmallVocabulary();
  return vocabulary;
}

std::unique_ptr<Matcher> Match(const ConstraintSpec& spec) {
  static auto& compiler = *new ConstraintCompiler(&Vocabulary());
  return std::make_unique<Matcher>(compiler.Compile(spec).value());
}

int32_t IdOf(std::string_view text) {
  for (int32_t id = 0; id < Vocabulary().vocab_size(); ++id) {
    if (Vocabulary().TokenBytes(id) == text) return id;
  }
  return -1;
}

void AcceptText(Matcher* matcher, std::string_view text) {
  for (const char c : text) ASSERT_OK(matcher->Accept(static_cast<uint8_t>(c)));
}

const std::vector<ConstraintSpec>& Specs() {
  static const auto& specs = *new std::vector<ConstraintSpec>{
      JsonObject(),
      Schema(
          R"({"properties":{"a":{"type":"string","maxLength":3},"ab":{"type":"number"}},"additionalProperties":{"type":"array"}})"),
      Schema(R"({"type":"array","items":{"anyOf":[{"type":"integer","minimum":10,"maximum":120},{"format":"date-time"}]}})"),
      Regex("([a-c]{2,5}|日.)*hello?"),
      Choice({"hello world", "hello", "ab"}),
      Gbnf("root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"ab\" | \"[\" s? \"]\" | \"1\""),
  };
  return specs;
}

TEST(Matcher, AMaskHasExactlyTheTokensWhoseBytesMayFollow) {
  std::mt19937 random(7);
  for (const ConstraintSpec& spec : Specs()) {
    const absl::StatusOr<Automaton> automaton = CompileAutomaton(spec);
    ASSERT_OK(automaton);
    for (int walk = 0; walk < 12; ++walk) {
      Pushdown pushdown(&*automaton);
      Position position = pushdown.start();
      const std::unique_ptr<Matcher> matcher = Match(spec);
      for (int step = 0; step < 40; ++step) {
        ASSERT_OK_AND_ASSIGN(const TokenMask* mask, matcher->Mask());
        std::vector<int32_t> allowed;
        for (int32_t id = 0; id < Vocabulary().vocab_size(); ++id) {
          Position then = position;
          for (const char c : Vocabulary().TokenBytes(id)) {
            if (then != kNowhere) then = pushdown.Advance(then, static_cast<uint8_t>(c));
          }
          const bool fits = then != kNowhere && !Vocabulary().TokenBytes(id).empty() && !Vocabulary().IsControl(id);
          ASSERT_EQ(mask->Allows(id), fits) << spec.text << " token " << id << " " << Vocabulary().TokenBytes(id);
          if (fits) allowed.push_back(id);
        }
        ASSERT_EQ(mask->Count(), static_cast<int32_t>(allowed.size()));
        ASSERT_EQ(matcher->CanEnd(), pushdown.CanEnd(position));
        ASSERT_EQ(matcher->MustEnd(), allowed.empty());
        if (allowed.empty()) break;
        const int32_t id = allowed[random() % allowed.size()];
        ASSERT_OK(matcher->Accept(id));
        for (const char c : Vocabulary().TokenBytes(id)) position = pushdown.Advance(position, static_cast<uint8_t>(c));
      }
    }
  }
}

// Runs of up to 60 letters, alone and before the end of a string.
class Runs final : public TokenSource {
 public:
  Runs() {
    for (int byte = 0; byte < 128; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));
    for (size_t length = 2; length <= 60; ++length) {
      for (const char* const end : {"", "\"", "\",\"a", "\",\"aaaaaaaaaaaaaaaaaaaaaa"})
        tokens_.push_back(std::string(length, 'a') + end);
    }
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::string_view TokenBytes(int32_t id) const override { return tokens_[static_cast<size_t>(id)]; }
  bool IsControl(int32_t) const override { return false; }

 private:
  std::vector<std::string> tokens_;
};

TEST(Matcher, LongTokensFitAsFarAsAStringMayStillGo) {
  const Runs runs;
  ConstraintCompiler compiler(&runs);
  const ConstraintSpec spec = Schema(R"({"type":"array","items":{"type":"string","minLength":3,"maxLength":50},"maxItems":2})");
  ASSERT_OK_AND_ASSIGN(const Automaton automaton, CompileAutomaton(spec));
  Pushdown pushdown(&automaton);
  Matcher matcher(compiler.Compile(spec).value());
  Position position = pushdown.start();
  for (const char c : std::string("[\"") + std::string(48, 'a') + "\",\"" + std::string(50, 'a')) {
    ASSERT_OK(matcher.Accept(static_cast<uint8_t>(c)));
    position = pushdown.Advance(position, static_cast<uint8_t>(c));
    ASSERT_OK_AND_ASSIGN(const TokenMask* mask, matcher.Mask());
    for (int32_t id = 0; id < runs.vocab_size(); ++id) {
      Position then = position;
      for (const char next : runs.TokenBytes(id)) {
        if (then != kNowhere) then = pushdown.Advance(then, static_cast<uint8_t>(next));
      }
      ASSERT_EQ(mask->Allows(id), then != kNowhere) << runs.TokenBytes(id);
    }
  }
}

TEST(Matcher, RefusesATokenThatDoesNotFit) {
  const std::unique_ptr<Matcher> matcher = Match(Choice({"hello"}));
  EXPECT_THAT(matcher->Accept('x'), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(matcher->Accept(Vocabulary().control()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(matcher->Accept(-1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(matcher->Accept(Vocabulary().vocab_size()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(matcher->Accept(IdOf("hello")));
  EXPECT_TRUE(matcher->CanEnd());
  EXPECT_TRUE(matcher->MustEnd());
}

TEST(Matcher, AnOutputInPartsEndsFreeTextAtATagOrASpecialToken) {
  const ConstraintSpec tag = {.kind = ConstraintKind::kLiteral, .text = "</t>"};
  const ConstraintSpec free = {.kind = ConstraintKind::kText, .choices = {"</t>"}};
  const ConstraintSpec control = {.kind = ConstraintKind::kToken, .token = Vocabulary().control()};
  const ConstraintSpec plain = {.kind = ConstraintKind::kToken, .token = IdOf("true")};
  const std::unique_ptr<Matcher> matcher = Match({.kind = ConstraintKind::kSequence,
                                                  .parts = {free,
                                                            {.kind = ConstraintKind::kAnyOf, .parts = {tag, control}},
                                                            {.kind = ConstraintKind::kRepeat, .parts = {plain}, .max = 2},
                                                            Schema(R"({"type": "integer"})")}});
  AcceptText(matcher.get(), "a</t");
  ASSERT_OK_AND_ASSIGN(const TokenMask* mask, matcher->Mask());
  EXPECT_TRUE(mask->Allows('>') && mask->Allows('<') && mask->Allows(0xC3) && mask->Allows(Vocabulary().control()));
  EXPECT_FALSE(mask->Allows(0xFF)) << "that byte stands for special tokens";
  ASSERT_OK(matcher->Accept(Vocabulary().control()));
  EXPECT_FALSE((*matcher->Mask())->Allows(Vocabulary().control()));
  ASSERT_OK(matcher->Accept(IdOf("true")));
  EXPECT_FALSE(matcher->CanEnd());
  ASSERT_OK(matcher->Accept(IdOf("12")));
  EXPECT_TRUE(matcher->CanEnd());
}

TEST(Matcher, RefusesPartsBeyondTheBounds) {
  const auto refusal = [](const ConstraintSpec& spec) {
    return std::string(ParseConstraint(spec, &Vocabulary()).status().message());
  };
  EXPECT_EQ(refusal({.kind = ConstraintKind::kToken, .token = 1 << 20}), "token 1048576 is none of the vocabulary");
  EXPECT_EQ(refusal({.kind = ConstraintKind::kRepeat}), "repeat has no part");
  EXPECT_EQ(refusal({.kind = ConstraintKind::kRepeat, .parts = {JsonObject()}, .min = 3, .max = 2}),
            "repeat is from 3 to 2, want 0 to 10000");
  EXPECT_EQ(refusal({.kind = ConstraintKind::kText, .choices = {""}}), "text excludes a text of 0 bytes, want 1 to 256");
  EXPECT_EQ(refusal({.kind = ConstraintKind::kText, .limits = {.min_length = 3000}}),
            "text: a length above 2000 is not supported for text that is written plainly");
  ConstraintSpec deep = JsonObject();
  for (int i = 0; i < 20; ++i) deep = {.kind = ConstraintKind::kSequence, .parts = {deep}};
  EXPECT_EQ(refusal(deep), "its parts are nested deeper than 16");
  ConstraintSpec wide = {.kind = ConstraintKind::kAnyOf};
  wide.parts.assign(kMaxParts, {.kind = ConstraintKind::kLiteral, .text = "a"});
  EXPECT_EQ(refusal(wide), "it has more than 20000 parts");
}

TEST(Matcher, ATokenMayCrossSeveralRules) {
  const std::unique_ptr<Matcher> matcher = Match(Schema(R"({"type":"array","items":{"properties":{"x":{"type":"string"}}}})"));
  AcceptText(matcher.get(), R"([{"x":"y)");
  ASSERT_OK_AND_ASSIGN(const TokenMask* mask, matcher->Mask());
  EXPECT_TRUE(mask->Allows(IdOf("\"}]")));
  EXPECT_TRUE(mask->Allows(IdOf("\"},")));
  EXPECT_FALSE(mask->Allows(IdOf("\",\"")));  // x is the only property
  ASSERT_OK(matcher->Accept(IdOf("\"}]")));
  EXPECT_TRUE(matcher->MustEnd());
}

TEST(Matcher, LongOutputsNeedNoMoreMemoryThanABound) {
  const std::unique_ptr<Matcher> matcher = Match(JsonObject());
  AcceptText(matcher.get(), "{\"a\":");
  // Nesting makes every position a new one.
  for (int i = 0; i < 30'000; ++i) {
    ASSERT_OK(matcher->Accept('['));
    if (i % 1000 != 0) continue;
    ASSERT_OK(matcher->Mask());
  }
  for (int i = 0; i < 30'000; ++i) ASSERT_OK(matcher->Accept(']'));
  ASSERT_OK(matcher->Accept('}'));
  EXPECT_TRUE(matcher->MustEnd());
}

TEST(Matcher, AnAmbiguousGrammarStaysPolynomial) {
  const std::unique_ptr<Matcher> matcher = Match(Gbnf("root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"b\" \"b\" | \"c\""));
  for (int i = 0; i < 300; ++i) ASSERT_OK(matcher->Accept('a'));
  ASSERT_OK(matcher->Accept('c'));
  for (int i = 0; i < 299; ++i) ASSERT_OK(matcher->Accept('b'));
  EXPECT_FALSE(matcher->CanEnd());
  ASSERT_OK(matcher->Accept('b'));
  EXPECT_TRUE(matcher->CanEnd());
  EXPECT_FALSE(matcher->MustEnd());
}

TEST(Matcher, AGrammarOfTooManyReadingsFailsInsteadOfStalling) {
  std::string grammar = "root ::= s\ns ::= \"d\"";
  for (int i = 0; i < 3000; ++i) grammar += absl::StrFormat(" | s%d \"%d\"", i, i);
  for (int i = 0; i < 3000; ++i) grammar += absl::StrFormat("\ns%d ::= [a-z]+ s | [a-z] [a-z]", i);
  const std::unique_ptr<Matcher> matcher = Match(Gbnf(grammar));
  absl::Status status;
  for (int i = 0; i < 3 && status.ok(); ++i) {
    status = matcher->Mask().status();
    if (status.ok()) status = matcher->Accept('a');
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace ferry::constraint
