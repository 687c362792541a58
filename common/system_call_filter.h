#pragma once

// Bounds which system calls a process may make, by a seccomp filter (Linux 3.17): what somebody who has got hold of a process
// that only computes and serves could do with the kernel.

namespace ferry {

// From now on the calling thread, and those that it starts, get EPERM for these: to execute a program; to trace, or to read the
// memory of, another process; to mount, or to enter another namespace or root; to load code into the kernel (modules, BPF,
// io_uring, perf, userfaultfd); to use keyrings, handles of files or other personalities; to change the machine's clock, name or
// state; and to make a socket that is neither local, IPv4, IPv6 nor netlink (which getaddrinfo asks). A call in the form of
// another architecture ends the process. False: this kernel, or a filter that is in force already, refuses filters, and nothing
// is bounded.
bool BoundSystemCalls();

}  // namespace ferry
