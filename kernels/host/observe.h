// What the emulated device tells a tool that counts (count.cpp, compiled with QT_COUNT); nothing in a usual build.
#pragma once

#include <stddef.h>

#include <functional>
#include <string>

namespace emulator {

struct Kernel;

#if defined(QT_COUNT)
void launch_begins(const Kernel& kernel, const int (&grid)[3], int threads, size_t shared_bytes);
void block_begins(const char* shared, size_t shared_bytes, int threads);
// The running lane is about to load or store, which the kernel's own code then does.
void touches(const void* p, size_t bytes, const void* caller);
// The running lane copies 16 bytes to shared memory without registers; zeros where `from` is null.
void copies(const void* to, const void* from, const void* caller);
// The running lane's row of an ldmatrix.
void reads_row(const void* row, const void* caller);
// All lanes of a warp have met: what each did since the last time stands side by side.
void warp_met(int warp);
enum class Event { Mma, Ldmatrix, Shuffle, WarpBarrier, BlockBarrier, CopyGroup, CopyWait };
void happens(Event event, int warp, int count = 1);
void launch_ends();
// Whether only as many blocks of a launch are run as its counts need, and nothing is computed.
bool sampled();
// Runs them, by `run_block`, which gives what failed.
std::string sample(const int (&grid)[3], const std::function<std::string(int, int, int)>& run_block);
#else
inline void launch_begins(const Kernel&, const int (&)[3], int, size_t) {}
inline void block_begins(const char*, size_t, int) {}
inline void touches(const void*, size_t, const void*) {}
inline void copies(const void*, const void*, const void*) {}
inline void reads_row(const void*, const void*) {}
inline void warp_met(int) {}
enum class Event { Mma, Ldmatrix, Shuffle, WarpBarrier, BlockBarrier, CopyGroup, CopyWait };
inline void happens(Event, int, int = 1) {}
inline void launch_ends() {}
inline bool sampled() { return false; }
inline std::string sample(const int (&)[3], const std::function<std::string(int, int, int)>&) { return ""; }
#endif

}  // namespace emulator
