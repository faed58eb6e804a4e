// The vocabulary of the kernels. Everything that only a GPU has is wrapped here exactly once: for nvcc as inline PTX
// (device.cuh), for a host compiler as a definition with the same documented meaning (../host/shim.h). Kernels include
// this file and those of ../tile, nothing else.
#pragma once

#ifdef __CUDACC__
#include "device.cuh"
#else
#include "../host/shim.h"
#endif

#include "math.cuh"
