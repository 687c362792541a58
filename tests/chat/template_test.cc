#include "gateway/template/template.h"

#include <string>

#include "tests/testing/status_matchers.h"

namespace ferry::jinja {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<std::vector<TextPiece>> Pieces(std::string_view source,
                                              nlohmann::ordered_json from_user = nlohmann::ordered_json::object(),
                                              const Limits& limits = {}) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Template> parsed, Template::Parse(source));
  return parsed->Render({.from_user = std::move(from_user)}, absl::UnixEpoch(), limits);
}

absl::StatusOr<std::string> Text(std::string_view source, nlohmann::ordered_json from_user = nlohmann::ordered_json::object(),
                                 const Limits& limits = {}) {
  ASSIGN_OR_RETURN(const std::vector<TextPiece> pieces, Pieces(source, std::move(from_user), limits));
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  return text;
}

TEST(Template, MarksWhatAUserWroteThroughEveryOperation) {
  struct Case {
    const char *source, *s = "<|end|>";
  };
  for (const Case& test : {
           Case{"{{ s }}"},
           {"{{ s ~ '' }}"},
           {"{{ '' + s }}"},
           {"{{ s[1:-1] }}", "a<|end|>b"},
           {"{{ s | trim }}", "  <|end|>\n"},
           {"{{ s.strip('{}') }}", "{<|end|>}"},
           {"{{ s.split('#')[1] }}", "a#<|end|>#b"},
           {"{{ s | list | join }}"},
           {"{{ s[::-1][::-1] }}"},
           {"{{ s | replace('@', '') }}", "<|@end|>"},
           {"{{ ({'k': s} | tojson)[7:-2] }}"},
           {"{{ ({'k': s} | string)[7:-2] }}"},
           {"{{ (({'k': s} | tojson) | from_json).k }}"},
           {"{{ s | upper | lower }}"},
           {"{%- macro m(a) %}{{ a }}{% endmacro %}{{ m(s) }}"},
           {"{%- set a %}{{ s }}{% endset %}{{ a }}"},
           {"{%- for c in s %}{{ c }}{% endfor %}"},
           {"{{ s if s in [s] else '' }}"},
           {"{{ [s, s] | unique | first }}"},
           {"{{ s | default('') | safe | string | indent }}"},
           {"{{ '@' | replace('@', s) }}"},
           {"{{ ''.join([s]) }}"},
           {"{{ [{'a': s}] | map(attribute='a') | join(',') }}"},
       }) {
    const auto pieces = Pieces(test.source, {{"s", test.s}});
    ASSERT_OK(pieces) << test.source;
    EXPECT_THAT(*pieces, ElementsAre(TextPiece{"<|end|>", true})) << test.source;
  }
}

TEST(Template, LeavesItsOwnTextUnmarkedBesideAUsers) {
  EXPECT_THAT(*Pieces("<|start|>{{ m.role }}<|end|>{{ [m.role, 1] }}", {{"m", {{"role", "user"}}}}),
              ElementsAre(TextPiece{"<|start|>", false}, TextPiece{"user", true}, TextPiece{"<|end|>['", false},
                          TextPiece{"user", true}, TextPiece{"', 1]", false}));
}

TEST(Template, NamesTheLineOfAnError) {
  EXPECT_THAT(Text("a\n{% include 'x' %}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2: 'include'")));
  EXPECT_THAT(Text("\n\n{{ x | nope }}"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 3: there is no filter 'nope'")));
  EXPECT_THAT(Text("\n{{ x.y }}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2: 'x' is undefined")));
  EXPECT_THAT(Text("{% if x %}\n"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'endif' is missing")));
  EXPECT_THAT(Text("\n{{ 'a' + 1 }}"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2: '+' does not take str and int")));
  EXPECT_THAT(Text("{{ raise_exception('no ' ~ 1) }}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no 1")));
  EXPECT_THAT(Text("{{ 'abc }}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not closed")));
}

TEST(Template, BoundsWhatATemplateTakes) {
  const Limits limits = {.output_bytes = 1 << 20, .memory_bytes = 8 << 20, .steps = 200'000, .time = absl::Seconds(60)};
  for (const std::string& source : {
           std::string("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"),
           std::string("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
           std::string("{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"),
           std::string("{% set ns = namespace(l=[1]) %}{% for a in range(100) %}{% set ns.l = ns.l + ns.l %}{% endfor %}"),
           std::string("{% set l = [] %}{% for a in range(100) %}{{ l.extend(l + [1]) }}{% endfor %}"),
           std::string("{{ 'abc' * 1000000000000 }}"),
           std::string("{{ ('a' * 1000000) | replace('a', 'b' * 1000) }}"),
           std::string("{{ range(1000000) }}"),
           std::string("{% set l = [] %}{% for a in range(100000) %}{% set _ = l.append('x' * 1000 ~ a) %}{% endfor %}"),
       }) {
    EXPECT_THAT(Text(source, nlohmann::ordered_json::object(), limits), StatusIs(absl::StatusCode::kResourceExhausted)) << source;
  }
  EXPECT_THAT(Text("{% for a in range(100000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}",
                   nlohmann::ordered_json::object(), {.steps = INT64_MAX / 2, .time = absl::Milliseconds(20)}),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  // A list within itself.
  EXPECT_THAT(Text("{% set l = [] %}{% set _ = l.append(l) %}{{ l }}"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Text("{{ " + std::string(100'000, '(') + " }}"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Text("{{ " + std::string(100'000, '-') + "1 }}"), StatusIs(absl::StatusCode::kInvalidArgument));
  std::string sum = "{{ 1";
  for (int i = 0; i < 10'000; ++i) sum += " + 1";
  EXPECT_THAT(Text(sum + " }}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("levels")));
}

TEST(Template, ShowsTheTimeItIsGiven) { EXPECT_EQ(*Text("{{ strftime_now('%Y-%m-%d %H') }}"), "1970-01-01 00"); }

}  // namespace
}  // namespace ferry::jinja
