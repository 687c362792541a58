// Writes all that passes a network interface to a file, until it is ended: what somebody on the cable sees. Needs root.
//
//   packet_capture INTERFACE FILE
//
// The file has the payloads of TCP segments, one after the other. It says "capturing" once nothing is missed any more.

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <string_view>

#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr int kBufferBytes = 64 << 20;

// The payload of an IPv4 packet's TCP segment; empty: it has none.
std::string_view TcpPayload(std::string_view packet) {
  if (packet.size() < sizeof(iphdr)) return {};
  const auto& ip = *reinterpret_cast<const iphdr*>(packet.data());
  const size_t ip_bytes = size_t{4} * ip.ihl;
  const size_t total = std::min<size_t>(packet.size(), ntohs(ip.tot_len));
  if (ip.version != 4 || ip.protocol != IPPROTO_TCP || total < ip_bytes + sizeof(tcphdr)) return {};
  const auto& tcp = *reinterpret_cast<const tcphdr*>(packet.data() + ip_bytes);
  const size_t header = ip_bytes + size_t{4} * tcp.doff;
  return total > header ? packet.substr(header, total - header) : std::string_view();
}

int Capture(const char* interface, const char* path) {
  // Of all protocols: a socket of one protocol sees nothing that leaves.
  const UniqueFd socket(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ALL)));
  sockaddr_ll address = {};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(::if_nametoindex(interface));
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kBufferBytes, sizeof(kBufferBytes));
  if (address.sll_ifindex == 0 || ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    std::perror(interface);
    return 1;
  }
  std::ofstream file(path, std::ios::binary);
  std::fprintf(stderr, "capturing\n");
  static std::array<char, 1 << 17> packet;  // larger than any that a virtual link passes on in one piece
  for (ssize_t size; (size = ::recv(socket.get(), packet.data(), packet.size(), 0)) > 0;) {
    const std::string_view payload = TcpPayload({packet.data(), static_cast<size_t>(size)});
    file.write(payload.data(), static_cast<std::streamsize>(payload.size()));
    file.flush();
  }
  return 0;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  if (argc == 3) return ferry::Capture(argv[1], argv[2]);
  std::fprintf(stderr, "usage: packet_capture INTERFACE FILE\n");
  return 2;
}
