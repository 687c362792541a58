#include "gateway/routes/completions.h"

#include "gateway/routes/llama_completions.h"
#include "gateway/routes/sampling_fields.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// A token a byte, and one that is no whole character.
constexpr uint32_t kHalf = 256;
Model SomeModel() {
  v1::GetVocabularyResponse vocabulary;
  for (int byte = 0; byte < 256; ++byte) vocabulary.add_tokens(std::string(1, static_cast<char>(byte)));
  vocabulary.add_tokens("\xE2\x82");
  auto model = std::make_shared<ServedModel>();
  model->tokens = TokenBytes(vocabulary);
  return model;
}

const AnswerIdentity kCompletionIdentity = {.id = "cmpl-1", .model = "demo", .created = 7};

v1::GenerateResponse Message(const std::string& text, int tokens = 1) {
  v1::GenerateResponse message;
  message.set_text(text);
  for (int i = 0; i < tokens; ++i) message.add_token_ids(5);
  return message;
}
v1::GenerateResponse Last(const std::string& text, v1::Finish::Reason reason, uint32_t generated) {
  v1::GenerateResponse message = Message(text);
  v1::Finish* const finish = message.mutable_finish();
  finish->set_reason(reason);
  finish->set_prompt_tokens(10);
  finish->set_cached_prompt_tokens(4);
  finish->set_generated_tokens(generated);
  finish->set_decode_seconds(2);
  return message;
}
void AddLogprob(uint32_t id, float logprob, google::protobuf::RepeatedPtrField<v1::PositionLogprobs>* to) {
  v1::PositionLogprobs* const position = to->Add();
  position->set_id(id);
  position->set_logprob(logprob);
  v1::TokenLogprob* const top = position->add_top();
  top->set_id(id);
  top->set_logprob(logprob);
}
// The JSON of each event of a stream; "[DONE]" as a string.
std::vector<Json> CompletionEvents(const std::string& stream) {
  std::vector<Json> events;
  for (size_t at = 0; at < stream.size();) {
    const size_t end = stream.find("\n\n", at);
    EXPECT_EQ(stream.substr(at, 6), "data: ");
    const std::string data = stream.substr(at + 6, end - at - 6);
    events.push_back(data == "[DONE]" ? Json(data) : Json::parse(data));
    at = end + 2;
  }
  return events;
}

TEST(Completions, TakesPromptsInEveryForm) {
  const auto prompts = [](const Json& prompt) { return CompletionRequestOf({{"prompt", prompt}})->prompts; };
  EXPECT_EQ(prompts("hi")[0].text(), "hi");
  EXPECT_THAT(prompts({1, 2})[0].tokens().ids(), ElementsAre(1, 2));
  EXPECT_THAT(prompts({"a", "b"}), SizeIs(2));
  EXPECT_THAT(prompts(Json::array({{1, 2}, {3}}))[1].tokens().ids(), ElementsAre(3));
}

TEST(Completions, LeavesOutWhatWasNotGiven) {
  const v1::GenerateRequest request = CompletionRequestOf({{"prompt", "x"}, {"user", "me"}, {"made_up", {1}}})->prompts[0];
  EXPECT_EQ(request.max_tokens(), kDefaultCompletionTokens);
  EXPECT_FALSE(request.sampling().has_temperature());
  EXPECT_FALSE(request.has_logprobs());
  EXPECT_FALSE(CompletionRequestOf({{"prompt", "x"}, {"max_tokens", -1}})->prompts[0].has_max_tokens());
}

TEST(Completions, PassesSamplingOn) {
  const v1::GenerateRequest request =
      CompletionRequestOf(Json::parse(R"({"prompt": "x", "temperature": 0, "top_p": 0.5, "top_k": -1,
      "min_p": 0.1, "repeat_penalty": 1.1, "frequency_penalty": -1, "presence_penalty": 2, "seed": 9, "logit_bias": {"7": -100},
      "stop": ["a", "b"], "stop_token_ids": [4, 5], "max_tokens": 3, "ignore_eos": true})"))
          ->prompts[0];
  EXPECT_EQ(request.sampling().temperature(), 0);
  EXPECT_EQ(request.sampling().top_p(), 0.5f);
  EXPECT_EQ(request.sampling().top_k(), 0u);
  EXPECT_EQ(request.sampling().min_p(), 0.1f);
  EXPECT_EQ(request.sampling().repetition_penalty(), 1.1f);
  EXPECT_EQ(request.sampling().seed(), 9u);
  EXPECT_EQ(request.sampling().logit_bias().at(7), -100);
  EXPECT_THAT(request.stop(), ElementsAre("a", "b"));
  EXPECT_THAT(request.stop_token_ids(), ElementsAre(4, 5));
  EXPECT_EQ(request.max_tokens(), 3u);
  EXPECT_TRUE(request.ignore_eos());
}

TEST(Completions, PassesFurtherSamplersOn) {
  const v1::GenerateRequest request =
      CompletionRequestOf(
          Json::parse(R"({"prompt": "x", "min_tokens": 3, "typical_p": 0.5, "top_n_sigma": 1.5, "xtc_probability": 0.25,
      "xtc_threshold": 0.125, "dry_multiplier": 0.75, "dry_base": 2, "dry_allowed_length": 4, "dry_penalty_last_n": 64,
      "dry_sequence_breakers": ["\n", "."]})"))
          ->prompts[0];
  EXPECT_EQ(request.min_tokens(), 3u);
  EXPECT_EQ(request.sampling().typical_p(), 0.5f);
  EXPECT_EQ(request.sampling().top_n_sigma(), 1.5f);
  EXPECT_EQ(request.sampling().xtc_probability(), 0.25f);
  EXPECT_EQ(request.sampling().xtc_threshold(), 0.125f);
  const v1::Dry& dry = request.sampling().dry();
  EXPECT_EQ(dry.multiplier(), 0.75f);
  EXPECT_EQ(dry.base(), 2);
  EXPECT_EQ(dry.allowed_length(), 4u);
  EXPECT_EQ(dry.last_tokens(), 64u);
  EXPECT_THAT(dry.sequence_breakers(), ElementsAre("\n", "."));
  const v1::Sampling none =
      CompletionRequestOf(Json::parse(R"({"prompt": "x", "dry_multiplier": 0, "top_n_sigma": -1})"))->prompts[0].sampling();
  EXPECT_FALSE(none.has_dry());
  EXPECT_EQ(none.top_n_sigma(), 0);
  EXPECT_TRUE(CompletionRequestOf(Json::parse(R"({"prompt": "x", "dry_multiplier": 1, "dry_sequence_breakers": []})"))
                  ->prompts[0]
                  .sampling()
                  .dry()
                  .no_sequence_breakers());
}

TEST(Completions, RefusesByName) {
  const auto refused = [](const char* body, const char* field) {
    const absl::StatusOr<CompletionRequest> request = CompletionRequestOf(Json::parse(body));
    EXPECT_THAT(request, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field))) << body;
    EXPECT_EQ(FieldOf(request.status()), field) << body;
  };
  refused(R"({})", "prompt");
  refused(R"({"prompt": 5})", "prompt");
  refused(R"({"prompt": ["a", 5]})", "prompt[1]");
  refused(R"({"prompt": [1, -5]})", "prompt");
  refused(R"({"prompt": "x", "temperature": "hot"})", "temperature");
  refused(R"({"prompt": "x", "temperature": -0.1})", "temperature");
  refused(R"({"prompt": "x", "top_p": 1.5})", "top_p");
  refused(R"({"prompt": "x", "max_tokens": 1.5})", "max_tokens");
  refused(R"({"prompt": "x", "max_tokens": 99999999999})", "max_tokens");
  refused(R"({"prompt": "x", "n": 0})", "n");
  refused(R"({"prompt": ["x", "y"], "n": 100})", "n");
  refused(R"({"prompt": "x", "best_of": 3})", "best_of");
  refused(R"({"prompt": "x", "logprobs": 21})", "logprobs");
  refused(R"({"prompt": "x", "stop": [1]})", "stop");
  refused(R"({"prompt": "x", "stop": ""})", "stop");
  refused(R"({"prompt": "x", "stop_token_ids": [-1]})", "stop_token_ids");
  refused(R"({"prompt": "x", "logit_bias": {"word": 1}})", "logit_bias");
  refused(R"({"prompt": "x", "logit_bias": {"5": 101}})", "logit_bias");
  refused(R"({"prompt": "x", "suffix": "end"})", "suffix");
  refused(R"({"prompt": "x", "grammar": "root ::= x"})", "grammar");
  refused(R"({"prompt": "x", "grammar": "root ::= \"a\"", "grammar_lazy": true})", "grammar_lazy");
  refused(R"({"prompt": "x", "json_schema": {"multipleOf": 2}})", "json_schema");
  refused(R"({"prompt": "x", "guided_regex": "(?=a)b"})", "guided_regex");
  refused(R"({"prompt": "x", "guided_choice": [1]})", "guided_choice");
  refused(R"({"prompt": "x", "guided_json": "{"})", "guided_json");
  refused(R"({"prompt": "x", "structured_outputs": {"structural_tag": "x"}})", "structured_outputs.structural_tag");
  refused(R"({"prompt": "x", "structured_outputs": {"json": {"if": {}}}})", "structured_outputs.json");
  refused(R"({"prompt": "x", "guided_regex": "a", "response_format": {"type": "json_object"}})", "guided_regex");
  refused(R"({"prompt": "x", "mirostat": 2})", "mirostat");
  refused(R"({"prompt": "x", "typical_p": 2})", "typical_p");
  refused(R"({"prompt": "x", "xtc_probability": "often"})", "xtc_probability");
  refused(R"({"prompt": "x", "dry_multiplier": 1, "dry_allowed_length": 0})", "dry_allowed_length");
  refused(R"({"prompt": "x", "min_tokens": -1})", "min_tokens");
  refused(R"({"prompt": "x", "response_format": {"type": "xml"}})", "response_format.type");
  refused(R"({"prompt": "x", "response_format": {"type": "json_schema"}})", "response_format.schema");
  refused(R"({"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}})",
          "response_format.json_schema.schema");
  refused(R"({"prompt": "x", "stream": "yes"})", "stream");
  refused(R"({"prompt": "x", "priority": "high"})", "priority");
  refused(R"({"prompt": "x", "priority": 3000000000})", "priority");
  refused(R"({"prompt": "x", "include_stop_str_in_output": true})", "include_stop_str_in_output");
  refused(R"({"prompt": "x", "skip_special_tokens": false})", "skip_special_tokens");
  refused(R"({"prompt": "x", "truncate_prompt_tokens": 100})", "truncate_prompt_tokens");
  refused(R"({"prompt": "x", "min_keep": 3})", "min_keep");
  refused(R"({"prompt": "x", "repeat_penalty": 1.1, "repeat_last_n": 64})", "repeat_last_n");
  refused(R"({"prompt": "x", "samplers": ["top_p", "top_k"]})", "samplers");
  refused(R"({"prompt": "x", "samplers": ["mirostat"]})", "samplers");
  refused(R"({"prompt": "x", "samplers": "kt"})", "samplers");
}

TEST(Completions, AListOfSamplersTurnsTheOthersOff) {
  const auto sampling = [](const char* body) {
    const absl::StatusOr<CompletionRequest> request = CompletionRequestOf(Json::parse(body));
    EXPECT_OK(request);
    return request.ok() ? request->prompts.at(0).sampling() : v1::Sampling();
  };
  const v1::Sampling all =
      sampling(R"({"prompt": "x", "top_k": 3, "min_p": 0.5, "repeat_penalty": 2, "samplers": ["penalties", "dry",
      "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]})");
  EXPECT_EQ(all.top_k(), 3u);
  EXPECT_EQ(all.min_p(), 0.5f);
  EXPECT_EQ(all.repetition_penalty(), 2);
  EXPECT_FALSE(all.has_top_p()) << "Ferry's default";
  const v1::Sampling one =
      sampling(R"({"prompt": "x", "top_k": 3, "top_p": 0.5, "min_p": 0.5, "repeat_penalty": 2, "temperature": 2,
      "dry_multiplier": 1, "samplers": ["top_k"]})");
  EXPECT_EQ(one.top_k(), 3u);
  EXPECT_EQ(one.top_p(), 1);
  EXPECT_EQ(one.min_p(), 0);
  EXPECT_EQ(one.temperature(), 1);
  EXPECT_FALSE(one.has_repetition_penalty());
  EXPECT_FALSE(one.has_dry());
  EXPECT_FALSE(sampling(R"({"prompt": "x", "repeat_penalty": 2, "repeat_last_n": 0})").has_repetition_penalty());
  EXPECT_EQ(sampling(R"({"prompt": "x", "repeat_penalty": 2, "repeat_last_n": -1})").repetition_penalty(), 2);
  EXPECT_OK(CompletionRequestOf(Json::parse(R"({"prompt": "x", "repeat_penalty": 1.0, "repeat_last_n": 64})")));
}

TEST(Completions, TakeTheConstraintsOfEveryServersClients) {
  const auto constraint = [](const char* body) {
    const absl::StatusOr<CompletionRequest> request = CompletionRequestOf(Json::parse(body));
    EXPECT_OK(request);
    return request.ok() ? request->prompts.at(0).constraint() : v1::Constraint();
  };
  EXPECT_TRUE(constraint(R"({"prompt": "x", "response_format": {"type": "json_object"}})").json_object());
  const char* const schema = R"({"type":"object","properties":{"b":{"type":"string"},"a":{}}})";
  for (const char* body :
       {R"({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": %s}}})",
        R"({"response_format": {"type": "json_object", "schema": %s}})", R"({"json_schema": %s})", R"({"guided_json": %s})",
        R"({"structured_outputs": {"json": %s}})"}) {
    std::string text = body;
    text.replace(text.find("%s"), 2, schema);
    EXPECT_EQ(constraint(("{\"prompt\": \"x\", " + text.substr(1)).c_str()).json_schema(), schema) << body;
  }
  EXPECT_EQ(constraint(R"({"prompt": "x", "grammar": "root ::= \"a\""})").gbnf(), "root ::= \"a\"");
  EXPECT_EQ(constraint(R"({"prompt": "x", "guided_grammar": "root ::= \"a\""})").gbnf(), "root ::= \"a\"");
  EXPECT_EQ(constraint(R"({"prompt": "x", "guided_regex": "a+"})").regex(), "a+");
  EXPECT_EQ(constraint(R"({"prompt": "x", "structured_outputs": {"choice": ["a", "b"]}})").choice().texts_size(), 2);
  EXPECT_EQ(constraint(R"({"prompt": "x", "response_format": {"type": "text"}, "grammar": "", "guided_choice": []})").kind_case(),
            v1::Constraint::KIND_NOT_SET);
}

TEST(Completions, TakesUnsupportedFieldsThatAskForNothing) {
  EXPECT_OK(CompletionRequestOf(Json::parse(R"({"prompt": "x", "suffix": null, "grammar": "", "mirostat": 0, "typical_p": 1.0,
      "dry_multiplier": 0.0, "best_of": 1, "response_format": {"type": "text"}, "top_n_sigma": -1})")));
}

TEST(Completions, GivesEachOfSeveralItsOwnSeed) {
  const CompletionRequest request = *CompletionRequestOf({{"prompt", {"a", "b"}}, {"n", 2}, {"seed", 5}});
  const std::vector<v1::GenerateRequest> generations = GenerationsOf(request);
  ASSERT_THAT(generations, SizeIs(4));
  EXPECT_EQ(generations[1].text(), "a");
  EXPECT_EQ(generations[1].sampling().seed(), 6u);
  EXPECT_EQ(generations[2].text(), "b");
  EXPECT_EQ(generations[2].sampling().seed(), 5u);
}

TEST(Completions, AnswersWhole) {
  const CompletionRequest request = *CompletionRequestOf({{"prompt", "x"}, {"n", 2}});
  const auto writer = NewCompletionWriter(request, kCompletionIdentity, SomeModel());
  EXPECT_EQ(writer->OnMessage(1, Message("c")), "");
  EXPECT_EQ(writer->OnMessage(0, Message("a")), "");
  EXPECT_EQ(writer->OnMessage(0, Last("b", v1::Finish::STOP, 2)), "");
  EXPECT_EQ(writer->OnMessage(1, Last("d", v1::Finish::LENGTH, 3)), "");
  const Json answer = Json::parse(writer->End());
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["model"], "demo");
  EXPECT_EQ(answer["choices"][0]["text"], "ab");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["choices"][1]["text"], "cd");
  EXPECT_EQ(answer["choices"][1]["finish_reason"], "length");
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 10) << "one prompt";
  EXPECT_EQ(answer["usage"]["completion_tokens"], 5);
  EXPECT_EQ(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
}

TEST(Completions, StreamsChunksUsageAndDone) {
  const CompletionRequest request =
      *CompletionRequestOf({{"prompt", "x"}, {"stream", true}, {"stream_options", {{"include_usage", true}}}});
  const auto writer = NewCompletionWriter(request, kCompletionIdentity, SomeModel());
  std::string stream = writer->OnMessage(0, Message("a"));
  stream += writer->OnMessage(0, Message(""));  // held back for a stop string, or half a character
  stream += writer->OnMessage(0, Last("b", v1::Finish::LENGTH, 3));
  stream += writer->End();
  const std::vector<Json> events = CompletionEvents(stream);
  ASSERT_THAT(events, SizeIs(4));
  EXPECT_EQ(events[0]["choices"][0]["text"], "a");
  EXPECT_EQ(events[0]["choices"][0]["finish_reason"], nullptr);
  EXPECT_EQ(events[1]["choices"][0]["text"], "b");
  EXPECT_EQ(events[1]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(events[1]["timings"]["predicted_per_second"], 1.5);
  EXPECT_TRUE(events[2]["choices"].empty());
  EXPECT_EQ(events[2]["usage"]["total_tokens"], 13);
  EXPECT_EQ(events[3], "[DONE]");
}

TEST(Completions, GivesLogprobsWithOffsets) {
  const CompletionRequest request = *CompletionRequestOf({{"prompt", "x"}, {"logprobs", 1}});
  EXPECT_EQ(request.prompts[0].logprobs(), 1u);
  const auto writer = NewCompletionWriter(request, kCompletionIdentity, SomeModel());
  v1::GenerateResponse message = Last("ab", v1::Finish::STOP, 2);
  AddLogprob('a', -1, message.mutable_logprobs());
  AddLogprob('b', -2, message.mutable_logprobs());
  writer->OnMessage(0, message);
  const Json logprobs = Json::parse(writer->End())["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], Json({"a", "b"}));
  EXPECT_EQ(logprobs["token_logprobs"], Json({-1.0, -2.0}));
  EXPECT_EQ(logprobs["text_offset"], Json({0, 1}));
  EXPECT_EQ(logprobs["top_logprobs"][1]["b"], -2.0);
}

TEST(Completions, EchoesThePromptWithItsLogprobs) {
  CompletionRequest request = *CompletionRequestOf({{"prompt", "xyz"}, {"echo", true}, {"logprobs", 0}, {"max_tokens", 0}});
  EXPECT_TRUE(request.prompts[0].has_prompt_logprobs());
  request.echoed = {"xyz"};
  const auto writer = NewCompletionWriter(request, kCompletionIdentity, SomeModel());
  v1::GenerateResponse first, second = Last("", v1::Finish::LENGTH, 0);
  second.clear_token_ids();
  AddLogprob('y', -1, first.mutable_prompt_logprobs());  // the prompt's come in pieces
  AddLogprob('z', -2, second.mutable_prompt_logprobs());
  writer->OnMessage(0, first);
  writer->OnMessage(0, second);
  const Json choice = Json::parse(writer->End())["choices"][0];
  EXPECT_EQ(choice["text"], "xyz");
  EXPECT_EQ(choice["logprobs"]["tokens"], Json({"x", "y", "z"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], Json({nullptr, -1.0, -2.0}));
  EXPECT_EQ(choice["logprobs"]["text_offset"], Json({0, 1, 2}));
}

TEST(Completions, WritesTokensThatAreNoWholeCharacters) {
  const CompletionRequest request = *CompletionRequestOf({{"prompt", "x"}, {"logprobs", 0}, {"stream", true}});
  const auto writer = NewCompletionWriter(request, kCompletionIdentity, SomeModel());
  v1::GenerateResponse message = Message("");
  AddLogprob(kHalf, -1, message.mutable_logprobs());
  EXPECT_THAT(writer->OnMessage(0, message), HasSubstr("\xEF\xBF\xBD"));
}

TEST(Completions, IdsDiffer) { EXPECT_NE(RandomId("cmpl-"), RandomId("cmpl-")); }

LlamaCompletion Llama(const char* body) {
  absl::StatusOr<LlamaCompletion> completion = LlamaCompletionOf(Json::parse(body));
  EXPECT_OK(completion);
  return completion.ok() ? *std::move(completion) : LlamaCompletion();
}

TEST(LlamaCompletions, HaveNoLimitUnlessNPredictSetsOne) {
  EXPECT_FALSE(Llama(R"({"prompt": "x"})").request.prompts.at(0).has_max_tokens());
  EXPECT_FALSE(Llama(R"({"prompt": "x", "n_predict": -1})").request.prompts.at(0).has_max_tokens());
  EXPECT_EQ(Llama(R"({"prompt": "x", "n_predict": 7, "cache_prompt": true})").request.prompts.at(0).max_tokens(), 7u);
  EXPECT_EQ(Llama(R"({"prompt": "x", "n_probs": 3})").request.prompts.at(0).logprobs(), 3u);
  EXPECT_FALSE(Llama(R"({"prompt": "x", "n_probs": 0, "logprobs": 5})").request.prompts.at(0).has_logprobs());
}

TEST(LlamaCompletions, TakePromptsInEveryForm) {
  EXPECT_EQ(Llama(R"({"prompt": {"prompt_string": "hi"}})").request.prompts.at(0).text(), "hi");
  EXPECT_THAT(Llama(R"({"prompt": [1, 2]})").request.prompts.at(0).tokens().ids(), ElementsAre(1, 2));
  const LlamaCompletion several = Llama(R"({"prompt": ["a", [3], {"prompt_string": "c"}]})");
  EXPECT_TRUE(several.several);
  ASSERT_THAT(several.request.prompts, SizeIs(3));
  EXPECT_EQ(several.request.prompts[2].text(), "c");
}

TEST(LlamaCompletions, RefuseByName) {
  const auto refused = [](const char* body, const char* field) {
    const absl::Status status = LlamaCompletionOf(Json::parse(body)).status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field))) << body;
    EXPECT_EQ(FieldOf(status), field) << body;
  };
  refused(R"({})", "prompt");
  refused(R"({"prompt": {"multimodal_data": []}})", "prompt");
  refused(R"({"prompt": "x", "n_probs": 21})", "n_probs");
  refused(R"({"prompt": "x", "n_predict": "all"})", "n_predict");
  refused(R"({"prompt": "x", "n": 2})", "n");
  refused(R"({"prompt": "x", "mirostat": 1})", "mirostat");
}

TEST(LlamaCompletions, AnswerWhole) {
  const auto writer = NewLlamaCompletionWriter(Llama(R"({"prompt": "x", "n_predict": 5, "return_tokens": true})"), SomeModel());
  EXPECT_EQ(writer->OnMessage(0, Message("a\n")), "");
  EXPECT_EQ(writer->OnMessage(0, Last("b", v1::Finish::LENGTH, 2)), "");
  const Json answer = Json::parse(writer->End());
  EXPECT_EQ(answer["content"], "a\nb");
  EXPECT_EQ(answer["stop"], true);
  EXPECT_EQ(answer["stop_type"], "limit");
  EXPECT_EQ(answer["tokens_predicted"], 2);
  EXPECT_EQ(answer["tokens_evaluated"], 10);
  EXPECT_EQ(answer["tokens_cached"], 4);
  EXPECT_EQ(answer["tokens"], Json({5, 5}));
  EXPECT_EQ(answer["has_new_line"], true);
  EXPECT_EQ(answer["prompt"], "x");
  EXPECT_EQ(answer["generation_settings"]["n_predict"], 5);
  EXPECT_EQ(answer["timings"]["predicted_n"], 2);
}

TEST(LlamaCompletions, AnswerSeveralPromptsWithAnArray) {
  const auto writer = NewLlamaCompletionWriter(Llama(R"({"prompt": ["x", "y"]})"), SomeModel());
  v1::GenerateResponse stopped = Last("b", v1::Finish::STOP, 2);
  stopped.mutable_finish()->set_matched_stop("END");
  writer->OnMessage(1, stopped);
  writer->OnMessage(0, Last("a", v1::Finish::STOP, 1));
  const Json answer = Json::parse(writer->End());
  ASSERT_EQ(answer.size(), 2u);
  EXPECT_EQ(answer[0]["stop_type"], "eos");
  EXPECT_EQ(answer[1]["stop_type"], "word");
  EXPECT_EQ(answer[1]["stopping_word"], "END");
  EXPECT_EQ(answer[1]["prompt"], "y");
}

TEST(LlamaCompletions, StreamContentThenWhatEndedIt) {
  const auto writer = NewLlamaCompletionWriter(Llama(R"({"prompt": "x", "stream": true, "n_probs": 1})"), SomeModel());
  v1::GenerateResponse first = Message("a");
  AddLogprob('a', -0.5f, first.mutable_logprobs());
  std::string stream = writer->OnMessage(0, first);
  stream += writer->OnMessage(0, Last("b", v1::Finish::STOP, 2));
  const std::vector<Json> events = CompletionEvents(stream + writer->End());
  ASSERT_THAT(events, SizeIs(3)) << "no [DONE]";
  EXPECT_EQ(events[0]["content"], "a");
  EXPECT_EQ(events[0]["stop"], false);
  EXPECT_EQ(events[0]["completion_probabilities"][0]["bytes"], Json({97}));
  EXPECT_EQ(events[0]["completion_probabilities"][0]["top_logprobs"][0]["token"], "a");
  EXPECT_EQ(events[1]["content"], "b");
  EXPECT_EQ(events[1]["tokens_predicted"], 2);
  EXPECT_EQ(events[2]["content"], "");
  EXPECT_EQ(events[2]["stop"], true);
}

}  // namespace
}  // namespace ferry
