// Commands that wait for somebody else say within two seconds what they wait for, and end.

#include <signal.h>

#include "tests/cli/run_ferry.h"
#include "tests/testing/loopback_listener.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

// Takes connections and says nothing.
using SilentServer = LoopbackListener;

TEST(SilentServers, ChatSaysWhatItWaitsFor) {
  const SilentServer server;
  EXPECT_THAT(Ferry("chat --server http://" + server.address(), "echo hi | timeout 6").err, HasSubstr("asking for the model's"));
  const Output encrypted = Ferry("chat --server https://" + server.address(), "echo hi | timeout 60");
  EXPECT_EQ(encrypted.exit_code, 1) << encrypted.err;
  EXPECT_THAT(encrypted.err, HasSubstr("connecting to https://" + server.address()));
  EXPECT_THAT(encrypted.err, HasSubstr("no TLS with"));
}

TEST(SilentServers, JoiningSaysWhatItWaitsFor) {
  const TestFolder folder;
  ASSERT_EQ(Ferry("cluster-init --cluster-certs " + folder.File("certs")).exit_code, 0);
  std::string token = Ferry("cluster-token --cluster-certs " + folder.File("certs")).out;
  token.resize(token.find('\n'));
  const SilentServer server;
  const Output output =
      Ferry("join " + server.address() + " --token " + token + " --cluster-certs " + folder.File("mine"), "timeout 60");
  EXPECT_EQ(output.exit_code, 1) << output.err;
  EXPECT_THAT(output.err, HasSubstr("asking " + server.address() + " for a certificate"));
}

TEST(SilentServers, AnInterruptedLookIsNoSuccess) {
  const SilentServer server;
  EXPECT_EQ(Ferry("status --server " + server.address(), "timeout --preserve-status 1").exit_code, 130);
}

TEST(SilentServers, ARequestThatGetsNoTokenSaysSo) {
  const TestFolder folder;
  const std::string log = folder.File("log"), err = folder.File("err"), ferry = BinaryBeside("ferry");
  std::ofstream(folder.File("script")) << ferry << " serve --backend cpu --http-port 0 --port 18943" << kOfDemoModel << ">" << log
                                       << " 2>&1 </dev/null & S=$!\n"
                                       << "for i in $(seq 600); do grep -q 'serving on' " << log << " && break; sleep 0.1; done\n"
                                       << "kill -STOP $(pgrep -P $S ferry-worker)\n"
                                       << ferry << " generate --server 127.0.0.1:18943 -p Once -n 4 </dev/null 2>" << err
                                       << " >/dev/null\nkill -INT $S; wait $S\n";
  ASSERT_NE(system(("timeout 200 bash " + folder.File("script")).c_str()), -1);
  std::ifstream file(err);
  const std::string said(std::istreambuf_iterator<char>(file), {});
  EXPECT_THAT(said, HasSubstr("waiting for the first token from 127.0.0.1:18943"));
}

}  // namespace
}  // namespace ferry
