// What a mask costs at a vocabulary of 200,000 tokens: `constraint_bench [TEXTS]` writes texts of several schemas, token by
// token, and prints for each how long compiling took, the first text's slowest mask, and the mean and quantiles of the masks
// afterwards.
//
// The vocabulary is synthetic: bytes, all pairs of letters, words of two to five syllables with and without a space in front,
// numbers of up to three digits, runs of white space, and words behind and in front of the punctuation of JSON.

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <unordered_set>
#include <vector>

#include "coordinator/constraint/constraint.h"
#include "coordinator/constraint/matcher.h"

namespace ferry::constraint {
namespace {

constexpr int32_t kVocabulary = 200'000;

class SyntheticVocabulary final : public TokenSource {
 public:
  SyntheticVocabulary() {
    std::unordered_set<std::string> seen;
    const auto add = [&](std::string text) {
      if (static_cast<int32_t>(tokens_.size()) < kVocabulary && seen.insert(text).second) tokens_.push_back(std::move(text));
    };
    for (int byte = 0; byte < 256; ++byte) add(std::string(1, static_cast<char>(byte)));
    for (int n = 0; n < 1000; ++n) add(std::to_string(n));
    for (int n = 1; n < 80; ++n) add(std::string(n, ' '));
    for (int n = 1; n < 40; ++n) add("\n" + std::string(n, ' '));
    static constexpr const char* kPunctuation[] = {"\"", "\",",  "\":", "\": ", "\": \"", "\", \"", "\"}", "},",  "{\"", "[\"",
                                                   "}]", "},\n", "\\n", "\\\"", ",\"",    ": ",     ", ",  "\"]", "}}",  "[{\""};
    std::mt19937 random(1);
    for (const char* punctuation : kPunctuation) add(punctuation);
    static constexpr const char* kSyllables[] = {"ba",  "con", "de", "er",  "fi", "gra", "in",  "ka", "lo",
                                                 "men", "ne",  "or", "pro", "qu", "re",  "sta", "ti", "un",
                                                 "ver", "wo",  "é",  "ß",   "ни", "日",  "本",  "の"};
    while (static_cast<int32_t>(tokens_.size()) < kVocabulary) {
      std::string word;
      for (uint32_t left = 2 + random() % 4; left > 0; --left) word += kSyllables[random() % std::size(kSyllables)];
      const uint32_t kind = random() % 40;
      if (kind == 0) word = kPunctuation[random() % std::size(kPunctuation)] + word;
      if (kind == 1) word += kPunctuation[random() % std::size(kPunctuation)];
      if (kind % 2 == 0) word = " " + word;
      add(std::move(word));
    }
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::string_view TokenBytes(int32_t id) const override { return tokens_[id]; }
  bool IsControl(int32_t) const override { return false; }

 private:
  std::vector<std::string> tokens_;
};

// Of this thread's own time, so that other programs on the machine do not count.
class Stopwatch {
 public:
  double Microseconds() const { return Now() - begin_; }

 private:
  static double Now() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) / 1e3;
  }
  const double begin_ = Now();
};

// One text of at most 200 tokens; how long each mask took.
std::vector<double> WriteText(const std::shared_ptr<const CompiledGrammar>& grammar, std::mt19937* random) {
  std::vector<double> times;
  Matcher matcher(grammar);
  for (int step = 0; step < 200 && !matcher.MustEnd(); ++step) {
    if (matcher.CanEnd() && (*random)() % 8 == 0) break;
    const Stopwatch watch;
    const absl::StatusOr<const TokenMask*> mask = matcher.Mask();
    times.push_back(watch.Microseconds());
    if (!mask.ok()) break;
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < (*mask)->vocab_size(); ++id) {
      if ((*mask)->Allows(id)) allowed.push_back(id);
    }
    // A quote often, as models' strings are short.
    const bool quote = (*mask)->Allows('"') && (*random)() % 6 == 0;
    const int32_t id = quote ? '"' : allowed[(*random)() % allowed.size()];
    if (!matcher.Accept(id).ok()) break;
  }
  return times;
}

void Measure(ConstraintCompiler* compiler, const char* name, const ConstraintSpec& spec, int texts) {
  const Stopwatch watch;
  const auto grammar = compiler->Compile(spec);
  const double compile = watch.Microseconds();
  if (!grammar.ok()) {
    std::printf("%-16s %s\n", name, std::string(grammar.status().message()).c_str());
    return;
  }
  std::mt19937 random(2);
  const std::vector<double> first = WriteText(*grammar, &random);
  std::vector<double> later;
  for (int i = 1; i < texts; ++i) {
    const std::vector<double> times = WriteText(*grammar, &random);
    later.insert(later.end(), times.begin(), times.end());
  }
  if (later.empty()) return;
  std::sort(later.begin(), later.end());
  const auto quantile = [&](double q) { return later[static_cast<size_t>(q * static_cast<double>(later.size() - 1))]; };
  const double mean = std::accumulate(later.begin(), later.end(), 0.0) / static_cast<double>(later.size());
  std::printf("%-16s %8.1f ms %8.0f us %9zu %8.1f us %8.1f us %8.1f us %8.1f us\n", name, compile / 1000,
              *std::max_element(first.begin(), first.end()), later.size(), mean, quantile(0.5), quantile(0.99), later.back());
}

int Main(int texts) {
  const SyntheticVocabulary vocabulary;
  ConstraintCompiler compiler(&vocabulary);
  const Stopwatch watch;
  if (!compiler.Compile({.kind = ConstraintKind::kChoice, .text = "", .choices = {"a"}}).ok()) return 1;
  std::printf("tree of %d tokens: %.0f ms\n", vocabulary.vocab_size(), watch.Microseconds() / 1000);
  std::printf("%-16s %11s %11s %9s %11s %11s %11s %11s\n", "constraint", "compile", "first, max", "masks", "mean", "p50", "p99",
              "max");
  const auto schema = [](const char* text) {
    return ConstraintSpec{.kind = ConstraintKind::kJsonSchema, .text = text, .choices = {}};
  };
  Measure(&compiler, "json_object", {}, texts);
  Measure(&compiler, "tool call", schema(R"({"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer",
      "minimum":1,"maximum":14},"unit":{"enum":["celsius","fahrenheit"]}},"required":["city","days"],
      "additionalProperties":false})"),
          texts);
  Measure(&compiler, "list of objects", schema(R"({"type":"array","items":{"type":"object","properties":{"name":{"type":"string"},
      "tags":{"type":"array","items":{"type":"string"}},"price":{"type":"number"}},"required":["name","tags","price"]}})"),
          texts);
  Measure(&compiler, "recursive", schema(R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"v":{"type":"string"},
      "l":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","l"]}}})"),
          texts);
  Measure(&compiler, "maxLength 200", schema(R"({"type":"array","items":{"type":"string","maxLength":200}})"), texts);
  Measure(&compiler, "pattern", schema(R"({"type":"array","items":{"type":"string","pattern":"^[a-z]+( [a-z]+)*$"}})"), texts);
  return 0;
}

}  // namespace
}  // namespace ferry::constraint

int main(int argc, char** argv) { return ferry::constraint::Main(argc > 1 ? std::max(2, std::atoi(argv[1])) : 50); }
