#include "gateway/json/json.h"

#include "gateway/json/repeated_event.h"
#include "gateway/json/token_ids.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(Json, RefusesDepthBeforeItParses) {
  EXPECT_OK(ParseJson(Nested(kMaxJsonDepth)));
  EXPECT_THAT(ParseJson(Nested(kMaxJsonDepth + 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("64")));
  EXPECT_THAT(ParseJson(std::string(5'000'000, '[')), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("64")));
  EXPECT_OK(ParseJson("\"" + std::string(100, '[') + "\\\"" + std::string(100, '{') + "\""));  // in a string
}

TEST(Json, RefusesTooManyValues) {
  std::string many = "[0";
  for (size_t i = 0; i < kMaxJsonValues; ++i) many += ",0";
  EXPECT_THAT(ParseJson(many + "]"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("values")));
}

TEST(Json, RefusesTooManyKeysOfOneObject) {
  std::string object = "{";
  for (size_t i = 0; i <= kMaxJsonKeys; ++i) object += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":[0,0]";
  EXPECT_THAT(ParseJson(object + "}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("keys")));
  EXPECT_THAT(ParseJson(object), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("keys")))
      << "before its end is looked for";
  object.resize(object.rfind(",\""));
  EXPECT_OK(ParseJson(object + "}"));
}

TEST(Json, SaysWhereABodyIsNoJson) {
  EXPECT_THAT(ParseJson("{\"a\": }"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("byte 7")));
  EXPECT_THAT(ParseJson("\"\xff\""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseJson(""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseJson("{} {}"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseJson("1e999"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseJsonObject("[]"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("an array, want a JSON object")));
}

TEST(Json, WritesWhatIsNotUtf8AsReplacementCharacters) { EXPECT_EQ(Dump(Json("a\xff")), "\"a\xEF\xBF\xBD\""); }

TEST(RepeatedEvent, IsWhatWouldHaveBeenMade) {
  int made = 0;
  Json around = {{"index", 0}, {"text", ""}, {"model", "demo"}};
  const auto make = [&](const std::string& text) {
    ++made;
    around["text"] = text;
    return Dump(around);
  };
  RepeatedEvent event;
  for (const std::string& text :
       {std::string("a"), std::string(), std::string("\"quoted\" \\ \n"), std::string("\xC3\xA4 \xE2\x82\xAC"),
        std::string("half a character \xC3"), std::string("\0 nul \x7f", 7)}) {
    const std::string got = event.Of(text, make);
    EXPECT_EQ(got, make(text)) << text;
  }
  EXPECT_EQ(made, 7) << "once for all events, and by this test for each";
  around["model"] = "other";
  event.Forget();
  EXPECT_EQ(event.Of("a", make), R"({"index":0,"text":"a","model":"other"})");
}

TEST(RepeatedEvent, IsMadeAnewWhereItCannotBeCut) {
  std::string last;
  const auto twice = [&](const std::string& text) {
    last = text;
    return Dump(Json{{"text", text}, {"again", text}});
  };
  RepeatedEvent event;
  EXPECT_EQ(event.Of("a", twice), R"({"text":"a","again":"a"})");
  EXPECT_EQ(event.Of("b", twice), R"({"text":"b","again":"b"})");
}

TEST(JsonFields, NullAndMissingAreNotThere) {
  const Json object = {{"a", nullptr}};
  const JsonFields fields(object);
  EXPECT_FALSE(fields.Has("a"));
  EXPECT_FALSE(fields.Has("b"));
  EXPECT_EQ(*fields.Number("a", 0, 1), std::nullopt);
  EXPECT_EQ(*fields.Object("b"), nullptr);
}

TEST(JsonFields, NamesTheFieldAndWhatItWants) {
  const Json object = {{"s", "x"}, {"n", 7}, {"f", 1.5}, {"big", 1e300}, {"list", {1}}};
  const JsonFields fields(object, "messages[2].");
  const auto expect = [](const absl::Status& status, const char* field, const char* message) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
    EXPECT_EQ(FieldOf(status), field);
  };
  expect(fields.Number("s", 0, 1).status(), "messages[2].s", "messages[2].s is a string, want a number");
  expect(fields.Number("n", 0, 1).status(), "messages[2].n", "is 7, want 0 to 1");
  expect(fields.Integer("f", 0, 9).status(), "messages[2].f", "want a whole number");
  expect(fields.Integer("big", 0, 9).status(), "messages[2].big", "want 0 to 9");
  expect(fields.Bool("n").status(), "messages[2].n", "true or false");
  expect(fields.String("n").status(), "messages[2].n", "want a string");
  expect(fields.Object("list").status(), "messages[2].list", "want an object");
  expect(fields.Array("n").status(), "messages[2].n", "want an array");
  expect(fields.Strings("list", 4).status(), "messages[2].list", "want a string or an array of strings");
}

TEST(JsonFields, TakesWholeNumbersWithAPointAndOfAnySize) {
  const Json object = {{"f", 5.0}, {"max", UINT64_MAX}, {"min", INT64_MIN}};
  const JsonFields fields(object);
  EXPECT_EQ(**fields.Integer("f", 0, 9), 5);
  EXPECT_FALSE(fields.Integer("max", 0, INT64_MAX).ok());
  EXPECT_EQ(**fields.Integer("min", INT64_MIN, 0), INT64_MIN);
}

TEST(JsonFields, ReadsTheFieldOutOfTheEnginesWords) {
  EXPECT_EQ(FieldOf(InvalidArgument("top_p is 7, want (0, 1]")), "top_p");
  EXPECT_EQ(FieldOf(InvalidArgument("stop[0] has 300 bytes")), "stop[0]");
  EXPECT_EQ(FieldOf(InvalidArgument("the body is not JSON")), "");
  EXPECT_EQ(FieldOf(Unavailable("top_p is 7")), "");
}

TEST(TokenIds, TakesNumbersThatCanBeIds) {
  EXPECT_THAT(*TokenIdsOf({1, 2}, "p"), ElementsAre(1, 2));
  EXPECT_FALSE(TokenIdsOf({1, -2}, "p").ok());
  EXPECT_FALSE(TokenIdsOf({1, 2.5}, "p").ok());
  EXPECT_FALSE(TokenIdsOf({1, uint64_t{1} << 32}, "p").ok());
  EXPECT_FALSE(TokenIdsOf(Json::object(), "p").ok());
}

}  // namespace
}  // namespace ferry
