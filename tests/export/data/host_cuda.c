/* A CUDA driver whose device memory lies on the host: enough of the driver API and of the runtime API to allocate, to
 * copy and to wait. Copies to the host happen when the stream is waited for, as they may on a GPU, so that reading too
 * early is noticed; fresh memory holds garbage.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;

static struct { void *to; const void *from; size_t size; } waiting[256];
static int count;
static int thing;

static void *fresh(size_t size) {
  void *memory = malloc(size);
  if (memory) memset(memory, 0xA5, size);
  return memory;
}

static int to_host(void *to, const void *from, size_t size) {
  if (count == 256) return 2;
  waiting[count].to = to;
  waiting[count].from = from;
  waiting[count++].size = size;
  return 0;
}

static int finish(void) {
  for (int i = 0; i < count; i++) memcpy(waiting[i].to, waiting[i].from, waiting[i].size);
  count = 0;
  return 0;
}

/* The driver API. */
int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *number) { *number = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { (void)device; strncpy(name, "Host Memory GPU", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { (void)attribute; (void)device; *value = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &thing; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
int cuCtxSetCurrent(void *context) { return context == &thing ? 0 : 201; }
int cuCtxGetCurrent(void **context) { *context = &thing; return 0; }
int cuCtxPushCurrent_v2(void *context) { return context == &thing ? 0 : 201; }
int cuCtxPopCurrent_v2(void **context) { if (context) *context = &thing; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuStreamCreate(void **stream, unsigned flags) { (void)flags; *stream = &thing; return 0; }
int cuStreamSynchronize(void *stream) { return stream == &thing ? finish() : 400; }
int cuStreamDestroy_v2(void *stream) { return stream == &thing ? 0 : 400; }
int cuMemAlloc_v2(address *pointer, size_t size) { *pointer = (address)fresh(size); return *pointer ? 0 : 2; }
int cuMemFree_v2(address pointer) { free((void *)pointer); return 0; }
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t size, void *stream) {
  if (stream != &thing) return 400;
  memcpy((void *)to, from, size);
  return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t size, void *stream) {
  return stream == &thing ? to_host(to, (const void *)from, size) : 400;
}

int cuGetErrorName(int error, const char **name) { (void)error; *name = "CUDA_ERROR"; return 0; }
int cuGetErrorString(int error, const char **text) { (void)error; *text = "it went wrong"; return 0; }

/* cuda.bindings asks for its functions here, under their names without a version. */
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
  char versioned[128];
  (void)version; (void)flags;
  snprintf(versioned, sizeof versioned, "%s_v2", name);
  *function = dlsym(RTLD_DEFAULT, versioned);
  if (!*function) *function = dlsym(RTLD_DEFAULT, name);
  if (status) *status = *function ? 0 : 1;
  return 0;
}

/* The runtime API. */
int cudaGetDeviceCount(int *number) { *number = 1; return 0; }
int cudaSetDevice(int device) { return device == 0 ? 0 : 101; }
int cudaGetDeviceProperties(void *properties, int device) { (void)device; strcpy(properties, "Host Memory GPU"); return 0; }
const char *cudaGetErrorString(int error) { (void)error; return "it went wrong"; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cuStreamCreate(stream, flags); }
int cudaStreamSynchronize(void *stream) { return cuStreamSynchronize(stream); }
int cudaStreamDestroy(void *stream) { return cuStreamDestroy_v2(stream); }
int cudaMalloc(void **pointer, size_t size) { *pointer = fresh(size); return *pointer ? 0 : 2; }
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  if (stream != &thing) return 400;
  if (kind == 1) memcpy(to, from, size);
  return kind == 1 ? 0 : kind == 2 ? to_host(to, from, size) : 21;
}
