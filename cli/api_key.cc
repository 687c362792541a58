// `ferry api-key`: a key for the API, its hash for the server's file.

#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "common/access/api_keys.h"
#include "common/command_line.h"

namespace ferry {
namespace {

struct ApiKeyOptions {
  std::string name, file;
  bool admin = false;
};

absl::Status MakeKey(const ApiKeyOptions& options) {
  ASSIGN_OR_RETURN(const NewApiKey made, MakeApiKey(options.name, options.admin ? Role::kAdmin : Role::kUser));
  RETURN_IF_ERROR(ApiKeys::AddLine(options.file, made.line));
  std::printf("%s\n", made.key.c_str());
  return absl::OkStatus();
}

}  // namespace

Command AddApiKey(CLI::App& app) {
  auto options = std::make_shared<ApiKeyOptions>();
  AddText(app, "name", options->name, "whose key it is, as the server's log names it")->required();
  AddText(app, "--file", options->file, "the file that `ferry serve --api-keys` reads; a line is added")->required();
  AddSwitch(app, "--admin", options->admin, "for an operator: `ferry status` in full, measurements that empty expert slots");
  app.footer(Examples({"ferry api-key alice --file keys                  prints the key, which nobody can read again",
                       "FERRY_API_KEY=fk-... ferry generate --server 192.0.2.1 -p Hello"}));
  return [options] { return MakeKey(*options); };
}

}  // namespace ferry
