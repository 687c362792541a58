// Conversations by the families' own templates against Jinja2's renderings: make_family_cases.py.

#include <gtest/gtest.h>

#include <fstream>

#include "gateway/chat/chat_format.h"
#include "gateway/chat/family_templates.h"
#include "tests/chat/families.h"
#include "tests/chat/parsing.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

ChatRequest RequestOf(const Json& json) {
  ChatRequest request;
  request.messages = json["messages"];
  request.tools = json["tools"];
  request.add_generation_prompt = json["add_generation_prompt"];
  if (json.contains("template_kwargs")) request.template_kwargs = json["template_kwargs"];
  return request;
}

TEST(FamilyCases, RenderConversationsAsJinja2Does) {
  std::ifstream file(SourcePath("tests/chat/testdata/family_cases.json"));
  const Json families = Json::parse(file);
  size_t i = 0, conversations = 0;
  for (const Family& family : Families()) {
    if (family.tokens.empty()) continue;  // harmony has no template
    ASSERT_LT(i, families.size());
    ASSERT_EQ(families[i]["family"], family.name);
    const FakeSpecialTokens tokens(family.tokens);
    ASSERT_EQ(families[i]["template"], FamilyTemplate(family.architecture, tokens).value_or(""))
        << family.name << ": the template has changed; run make_family_cases.py again";
    ASSERT_OK_AND_ASSIGN(
        const std::unique_ptr<ChatFormat> format,
        MakeChatFormat(
            {.architecture = family.architecture, .bos_token = "<s>", .eos_token = "</s>", .special_tokens = &tokens}));
    for (const Json& test : families[i++]["cases"]) {
      const absl::StatusOr<ChatPrompt> prompt = format->Render(RequestOf(test["request"]));
      ASSERT_OK(prompt) << family.name << ": " << test["request"];
      EXPECT_EQ(prompt->Text(), test["want"].get<std::string>()) << family.name << ": " << test["request"];
      ++conversations;
    }
  }
  EXPECT_EQ(i, families.size());
  EXPECT_GE(conversations, 200u);
}

}  // namespace
}  // namespace ferry
