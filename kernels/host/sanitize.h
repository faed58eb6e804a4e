// What the emulated device tells the sanitizers (scripts/sanitize-kernels); nothing in a usual build.
//
// ThreadSanitizer takes each lane for a thread, and switching between lanes for no reason that one sees what another
// did: only barriers are. So it finds what a barrier is missing for, under any one schedule, in shared memory and
// between the blocks of a launch in global memory. For this the emulator itself is compiled without it (its own state
// is nobody's race), with QT_THREADS defined. AddressSanitizer has to know the stacks.
#pragma once

#include <stddef.h>

#if defined(QT_THREADS)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(void* at, unsigned long bytes);
extern "C" void __tsan_write_range(void* at, unsigned long bytes);
#elif defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

// Whether lanes are told apart as threads.
#if defined(QT_THREADS)
constexpr bool THREADS = true;
#else
constexpr bool THREADS = false;
#endif

// A stack, as the sanitizers know it: of a lane, or with no memory the one that the scheduler runs on.
struct Context {
    const void* bottom = nullptr;
    size_t bytes = 0;
    void* thread = nullptr;
    void* kept = nullptr;

    // The context of the code that calls it.
    void own() {
#if defined(QT_THREADS)
        thread = __tsan_get_current_fiber();
#endif
    }

    // The stack begins anew.
    void fresh() {
#if defined(QT_THREADS)
        if (!thread) thread = __tsan_create_fiber(0);
#elif defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(bottom, bytes);
#endif
        kept = nullptr;
    }

    // Just before the switch to `next`; `ends` where nothing comes back to this one.
    void before_switch([[maybe_unused]] Context& next, [[maybe_unused]] bool ends) {
#if defined(QT_THREADS)
        __tsan_switch_to_fiber(next.thread, __tsan_switch_to_fiber_no_sync);
#elif defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(ends ? nullptr : &kept, next.bottom, next.bytes);
#endif
    }

    // Just after a switch to this one, from `last`.
    void after_switch([[maybe_unused]] Context& last) {
#if defined(__SANITIZE_ADDRESS__)
        const void* from;
        size_t size;
        __sanitizer_finish_switch_fiber(kept, &from, &size);
        last.bottom = from;
        last.bytes = size;
#endif
    }
};

// What the lane did so far will be seen by those that call `sees` with the same tag later.
inline void shows([[maybe_unused]] void* tag) {
#if defined(QT_THREADS)
    __tsan_release(tag);
#endif
}

inline void sees([[maybe_unused]] void* tag) {
#if defined(QT_THREADS)
    __tsan_acquire(tag);
#endif
}

// Accesses that the emulator makes for the lane.
inline void reads([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#if defined(QT_THREADS)
    __tsan_read_range(const_cast<void*>(at), bytes);
#endif
}

inline void writes([[maybe_unused]] void* at, [[maybe_unused]] size_t bytes) {
#if defined(QT_THREADS)
    __tsan_write_range(at, bytes);
#endif
}

// Memory that nobody may touch, until it is allowed again.
inline void forbid([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(at, bytes);
#endif
}

inline void allow([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(at, bytes);
#endif
}

}  // namespace emulator
