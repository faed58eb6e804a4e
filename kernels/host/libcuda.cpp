// The emulated device as a driver library: the functions of CUDA's driver interface that the program calls, so that the
// program itself, as it is built for users, runs on it. Linked with the kernels it is a libcuda.so, for rehearsals of what
// a GPU will be asked for (tools/gpu/rehearse); times are those of the emulation and say nothing.
//
// Everything is done when it is asked for, but for what is captured, which is done when its graph is launched.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "emulator.h"

using emulator::Kernel;

// Of CUDA's cuda.h: the codes that are told apart, and numbers of attributes.
enum Code { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700,
            TOO_MANY_RESOURCES = 701, CAPTURE_INVALIDATED = 901, CAPTURE_UNSUPPORTED = 900 };
enum Attribute { MULTIPROCESSORS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, SHARED_BYTES = 97 };

extern "C" int qt_launch(const char* name, const uint32_t* grid, uint32_t threads, uint32_t shared_bytes, const void* params,
                         uint32_t params_bytes, uint32_t order, uint32_t lazy, uint64_t seed, char* error,
                         size_t error_bytes);
extern "C" void qt_register(const void* first, size_t bytes);
extern "C" void qt_unregister(const void* first);

namespace {

constexpr size_t MEMORY = size_t{4} << 30;
constexpr unsigned SHARED = 99 * 1024;

struct Work {
    enum Kind { Launch, Copy, Fill } kind;
    const Kernel* kernel = nullptr;
    uint32_t grid[3] = {}, threads = 0, shared_bytes = 0;
    std::vector<char> params;
    char* to = nullptr;
    const char* from = nullptr;
    size_t bytes = 0;
    int value = 0;
};

struct Stream {
    bool capturing = false;
    bool spoiled = false;
    std::vector<Work> captured;
};

struct Event {
    timespec at = {};
};

struct Graph {
    std::vector<Work> work;
};

std::mutex lock;
bool blocking = false;
std::map<const void*, size_t> allocations;
size_t allocated = 0;

int refused(const Work& work) {
    const uint32_t* g = work.grid;
    const bool grid = g[0] > 0 && g[1] > 0 && g[2] > 0 && g[0] <= 0x7fffffff && g[1] <= 65535 && g[2] <= 65535;
    if (!grid || work.threads == 0 || work.threads > 1024) return INVALID_VALUE;
    return work.shared_bytes > SHARED ? TOO_MANY_RESOURCES : SUCCESS;
}

int perform(const Work& work) {
    if (work.kind == Work::Copy) memcpy(work.to, work.from, work.bytes);
    if (work.kind == Work::Fill) memset(work.to, work.value, work.bytes);
    if (work.kind != Work::Launch) return SUCCESS;
    char error[4096];
    std::vector<max_align_t> aligned(work.params.size() / sizeof(max_align_t) + 1);
    memcpy(aligned.data(), work.params.data(), work.params.size());
    const int failed = qt_launch(work.kernel->name, work.grid, work.threads, work.shared_bytes, aligned.data(),
                                 static_cast<uint32_t>(work.params.size()), 0, 1, 0, error, sizeof error);
    if (!failed) return SUCCESS;
    fprintf(stderr, "emulated device: %s\n", error);
    return ILLEGAL_ADDRESS;
}

int submit(Stream* stream, Work work) {
    if (!stream->capturing) return perform(work);
    stream->captured.push_back(std::move(work));
    return SUCCESS;
}

// Copies of the host and waits are no part of what is captured.
int outside(Stream* stream) {
    if (!stream->capturing) return SUCCESS;
    stream->spoiled = true;
    return CAPTURE_UNSUPPORTED;
}

int copy(Stream* stream, void* to, const void* from, size_t bytes) {
    Work work;
    work.kind = Work::Copy;
    work.to = static_cast<char*>(to), work.from = static_cast<const char*>(from), work.bytes = bytes;
    return submit(stream, std::move(work));
}

}  // namespace

#define DRIVER extern "C" int

// ---- the device ----------------------------------------------------------------------------------------------------

DRIVER cuInit(unsigned) { return SUCCESS; }
DRIVER cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
DRIVER cuGetErrorString(int code, const char** text) { return *text = code == SUCCESS ? "no error" : "refused by the emulated device", SUCCESS; }
DRIVER cuGetErrorName(int, const char** text) { return *text = "EMULATED", SUCCESS; }
DRIVER cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
DRIVER cuDeviceGet(int* device, int index) { return *device = index, index == 0 ? SUCCESS : INVALID_DEVICE; }
DRIVER cuDeviceGetName(char* name, int size, int) { return snprintf(name, static_cast<size_t>(size), "emulated, no GPU"), SUCCESS; }
DRIVER cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = MEMORY, SUCCESS; }
DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
    const std::map<int, int> known = {{MULTIPROCESSORS, 1}, {CAPABILITY_MAJOR, 8}, {CAPABILITY_MINOR, 0}, {SHARED_BYTES, SHARED}};
    const auto found = known.find(attribute);
    if (found == known.end()) return INVALID_VALUE;
    *value = found->second;
    return SUCCESS;
}
// Whoever waits must sleep (CU_CTX_SCHED_BLOCKING_SYNC), so a context is given out to those alone who asked for that.
DRIVER cuDevicePrimaryCtxSetFlags_v2(int, unsigned flags) { return blocking = flags == 4, SUCCESS; }
DRIVER cuDevicePrimaryCtxRetain(void** context, int) { return *context = &lock, blocking ? SUCCESS : INVALID_VALUE; }
DRIVER cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
DRIVER cuCtxSetCurrent(void*) { return SUCCESS; }
DRIVER cuCtxSynchronize() { return SUCCESS; }

// ---- memory --------------------------------------------------------------------------------------------------------

DRIVER cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    const std::lock_guard<std::mutex> guard(lock);
    *free_bytes = MEMORY - allocated, *total = MEMORY;
    return SUCCESS;
}
DRIVER cuMemAlloc_v2(void** at, size_t bytes) {
    const std::lock_guard<std::mutex> guard(lock);
    if (allocated + bytes > MEMORY) return OUT_OF_MEMORY;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return OUT_OF_MEMORY;
    qt_register(p, bytes);
    allocations[p] = bytes;
    allocated += bytes;
    *at = p;
    return SUCCESS;
}
DRIVER cuMemFree_v2(void* at) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto found = allocations.find(at);
    if (found == allocations.end()) return INVALID_VALUE;
    qt_unregister(at);
    munmap(at, found->second);
    allocated -= found->second;
    allocations.erase(found);
    return SUCCESS;
}
DRIVER cuMemHostAlloc(void** at, size_t bytes, unsigned) { return *at = malloc(bytes), *at ? SUCCESS : OUT_OF_MEMORY; }
DRIVER cuMemFreeHost(void* at) { return free(at), SUCCESS; }
DRIVER cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, Stream* stream) {
    const int no = outside(stream);
    return no ? no : copy(stream, to, from, bytes);
}
DRIVER cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, Stream* stream) {
    const int no = outside(stream);
    return no ? no : copy(stream, to, from, bytes);
}
DRIVER cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, Stream* stream) { return copy(stream, to, from, bytes); }
DRIVER cuMemsetD8Async(void* to, unsigned char value, size_t bytes, Stream* stream) {
    Work work;
    work.kind = Work::Fill;
    work.to = static_cast<char*>(to), work.bytes = bytes, work.value = value;
    return submit(stream, std::move(work));
}

// ---- streams, events, graphs ---------------------------------------------------------------------------------------

DRIVER cuStreamCreate(Stream** stream, unsigned) { return *stream = new Stream, SUCCESS; }
DRIVER cuStreamDestroy_v2(Stream* stream) { return delete stream, SUCCESS; }
DRIVER cuStreamSynchronize(Stream* stream) { return outside(stream); }
DRIVER cuStreamWaitEvent(Stream*, Event*, unsigned) { return SUCCESS; }
DRIVER cuStreamBeginCapture_v2(Stream* stream, int) {
    if (stream->capturing) return outside(stream);
    stream->capturing = true, stream->spoiled = false;
    stream->captured.clear();
    return SUCCESS;
}
DRIVER cuStreamEndCapture(Stream* stream, Graph** graph) {
    stream->capturing = false;
    if (stream->spoiled) return *graph = nullptr, CAPTURE_INVALIDATED;
    *graph = new Graph{std::move(stream->captured)};
    return SUCCESS;
}
DRIVER cuGraphInstantiateWithFlags(Graph** ready, Graph* graph, unsigned long long) { return *ready = new Graph(*graph), SUCCESS; }
DRIVER cuGraphDestroy(Graph* graph) { return delete graph, SUCCESS; }
DRIVER cuGraphExecDestroy(Graph* graph) { return delete graph, SUCCESS; }
DRIVER cuGraphLaunch(Graph* graph, Stream*) {
    for (const Work& work : graph->work) {
        if (const int failed = perform(work)) return failed;
    }
    return SUCCESS;
}
DRIVER cuEventCreate(Event** event, unsigned) { return *event = new Event, SUCCESS; }
DRIVER cuEventDestroy_v2(Event* event) { return delete event, SUCCESS; }
DRIVER cuEventRecord(Event* event, Stream*) { return clock_gettime(CLOCK_MONOTONIC, &event->at), SUCCESS; }
DRIVER cuEventQuery(Event*) { return SUCCESS; }
DRIVER cuEventSynchronize(Event*) { return SUCCESS; }
DRIVER cuEventElapsedTime(float* ms, const Event* start, const Event* end) {
    *ms = static_cast<float>(static_cast<double>(end->at.tv_sec - start->at.tv_sec) * 1e3 +
                             static_cast<double>(end->at.tv_nsec - start->at.tv_nsec) * 1e-6);
    return SUCCESS;
}

// ---- kernels -------------------------------------------------------------------------------------------------------

// All kernels are in this library, whatever the image.
DRIVER cuModuleLoadData(void** module, const void*) { return *module = &lock, SUCCESS; }
DRIVER cuModuleUnload(void*) { return SUCCESS; }
DRIVER cuModuleGetFunction(const Kernel** function, void*, const char* name) {
    *function = emulator::find(name);
    return *function ? SUCCESS : NOT_FOUND;
}
DRIVER cuFuncSetAttribute(const Kernel*, int, int value) { return value <= static_cast<int>(SHARED) ? SUCCESS : INVALID_VALUE; }
DRIVER cuLaunchKernel(const Kernel* kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                      unsigned shared_bytes, Stream* stream, void** params, void**) {
    Work work;
    work.kind = Work::Launch;
    work.kernel = kernel;
    work.grid[0] = x, work.grid[1] = y, work.grid[2] = z;
    work.threads = threads, work.shared_bytes = shared_bytes;
    const char* first = static_cast<const char*>(params[0]);
    work.params.assign(first, first + kernel->params_bytes);
    const int no = refused(work);
    return no ? no : submit(stream, std::move(work));
}
