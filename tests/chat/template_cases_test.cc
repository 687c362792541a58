#include <gtest/gtest.h>

#include <fstream>

#include "gateway/template/template.h"
#include "tests/testing/source_path.h"

namespace ferry::jinja {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<std::string> RenderCase(const Json& test) {
  ASSIGN_OR_RETURN(const auto parsed, Template::Parse(test["template"].get<std::string>()));
  ASSIGN_OR_RETURN(const auto pieces, parsed->Render({.from_user = test["variables"]}, absl::UnixEpoch()));
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  return text;
}

TEST(TemplateCases, RenderAsJinja2DoesOrFailAsItDoes) {
  std::ifstream file(SourcePath("tests/chat/testdata/template_cases.json"));
  const Json cases = Json::parse(file);
  ASSERT_GT(cases.size(), 100u);
  for (const Json& test : cases) {
    const absl::StatusOr<std::string> text = RenderCase(test);
    if (test["want"].is_null()) {
      EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument) << test["template"] << " gives " << text.value_or("");
    } else {
      EXPECT_TRUE(text.ok()) << test["template"] << ": " << text.status();
      if (!text.ok()) continue;
      EXPECT_EQ(*text, test["want"].get<std::string>()) << test["template"];
    }
  }
}

}  // namespace
}  // namespace ferry::jinja
