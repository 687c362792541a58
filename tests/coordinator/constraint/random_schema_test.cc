#include "tests/coordinator/constraint/random_schema.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tests/coordinator/constraint/constraint_testing.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry::constraint {
namespace {

TEST(RandomSchemas, EveryTextIsValidByAnotherJudge) {
  if (std::system("python3 -W ignore -c 'import jsonschema' 2>/dev/null") != 0) {
    GTEST_SKIP() << "needs python3 with the package jsonschema";
  }
  const SmallVocabulary vocabulary;
  ConstraintCompiler compiler(&vocabulary);
  const std::string path = testing::TempDir() + "random_schemas." + std::to_string(getpid());
  std::ofstream file(path);
  for (uint32_t seed = 0; seed < 300; ++seed) {
    const nlohmann::ordered_json schema = RandomSchema(seed).Make();
    SCOPED_TRACE(schema.dump());
    const auto grammar = compiler.Compile(Schema(schema.dump()));
    ASSERT_OK(grammar);
    nlohmann::ordered_json line = {{"schema", schema}, {"texts", nlohmann::ordered_json::array()}};
    for (uint32_t walk = 0; walk < 4; ++walk) {
      ASSERT_OK_AND_ASSIGN(const std::string text, RandomText(*grammar, vocabulary, 1000 * seed + walk, 30 << walk));
      line["texts"].push_back(text);
    }
    file << line.dump() << "\n";
  }
  file.close();
  const std::string judge = SourcePath("tests/coordinator/constraint/check_with_jsonschema.py");
  EXPECT_EQ(std::system(("python3 -W ignore " + judge + " < " + path).c_str()), 0) << path;
  if (!HasFailure()) std::remove(path.c_str());
}

}  // namespace
}  // namespace ferry::constraint
