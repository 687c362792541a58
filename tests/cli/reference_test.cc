// docs/cli.md and the completions, which are made from the table of flags.

#include "cli/reference.h"

#include <gmock/gmock.h>

#include <fstream>
#include <iterator>

#include "tests/cli/run_ferry.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

TEST(Reference, DocsCliIsCurrent) {
  const std::unique_ptr<FerryProgram> program = MakeFerry("test");
  const std::string made = CommandReference(*program);
  std::ifstream file(SourcePath("docs/cli.md"));
  const std::string kept{std::istreambuf_iterator<char>(file), {}};
  if (made == kept) return;
  const std::string path = ::testing::TempDir() + "/cli.md";
  std::ofstream(path) << made;
  ADD_FAILURE() << "flags have changed: cp " << path << " docs/cli.md";
}

// What bash offers behind `line`.
std::string Offers(const std::string& line, int word) {
  const std::string ferry = BinaryBeside("ferry");
  const std::string script = "source <(" + ferry + " completion bash); COMP_WORDS=(" + line +
                             "); COMP_CWORD=" + std::to_string(word) + "; _ferry; echo \"${COMPREPLY[*]}\"";
  return RunProgramBeside("ferry", "", "bash -c '" + script + "' ignored").out;
}

TEST(Completion, BashOffersCommandsFlagsAndWords) {
  EXPECT_EQ(Offers("ferry gen", 1), "generate\n");
  EXPECT_EQ(Offers("ferry serve --alia", 2), "--alias\n");
  EXPECT_EQ(Offers("ferry serve --cache-type-k q", 3), "q8_0\n");
  EXPECT_EQ(Offers("ferry serve --model x", 3), "\n") << "files are the shell's own";
}

TEST(Completion, EveryShellHasAScript) {
  EXPECT_THAT(Ferry("completion fish").out,
              HasSubstr("complete -c ferry -n '__fish_seen_subcommand_from serve' -s c -l ctx-size -r"));
  EXPECT_THAT(Ferry("completion zsh").out, HasSubstr("bashcompinit"));
  EXPECT_EQ(Ferry("completion tcsh").exit_code, 2);
}

}  // namespace
}  // namespace ferry
