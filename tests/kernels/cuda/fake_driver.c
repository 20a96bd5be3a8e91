/* A CUDA driver without a GPU, to be found as libcuda.so.1: the host's memory, and streams that do nothing until they
   are waited for. What is asked of a stream is kept in order, and runs as late as it may: whoever forgets to wait finds
   old numbers. Kernels are written down, not run. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, BAD_DEVICE = 101, NOT_READY = 600, MOST = 4096 };
enum Kind { COPY, CLEAR, RECORD, WAIT, KERNEL };
typedef unsigned long long u64;
typedef struct Stream Stream;
typedef struct { Stream *stream; long at; } Event; /* the place in the stream at which it was recorded last */
typedef struct { enum Kind kind; char *to; const char *from; size_t size; Event *event; Event seen; long count;
                 const char *name; unsigned grid; } Op;
struct Stream { Op ops[MOST]; long begun, end; int graph; Op *captured; long captured_end; };
typedef struct { Op ops[MOST]; long end; } Graph;

static FILE *log_file;
static size_t given;
static long number(const char *name, long usual) { const char *v = getenv(name); return v ? atol(v) : usual; }
static void note(const char *what, long a, long b) {
    if (!log_file) log_file = fopen(getenv("FAKE_CUDA_LOG") ? getenv("FAKE_CUDA_LOG") : "/dev/null", "a");
    fprintf(log_file, "%s %ld %ld\n", what, a, b);
    fflush(log_file);
}

static Stream usual; /* the stream that is there without being made has the handles 0, 1 and 2 */
static Stream *of(Stream *handle) { return (size_t)handle <= 2 ? &usual : handle; }

static void run_to(Stream *s, long at) {
    while (s->begun < at) {
        Op *op = &s->ops[s->begun++ % MOST];
        if (op->kind == COPY) memmove(op->to, op->from, op->size);
        if (op->kind == CLEAR) memset(op->to, 0, op->size);
        if (op->kind == WAIT && op->seen.stream) run_to(op->seen.stream, op->seen.at);
        if (op->kind == KERNEL) note(op->name, op->grid, (long)s);
    }
}
static int ask(Stream *s, Op op) {
    s = of(s);
    if (s->graph) {
        ((Graph *)s->captured)->ops[((Graph *)s->captured)->end++] = op;
        return SUCCESS;
    }
    if (s->end - s->begun == MOST) run_to(s, s->end);
    if (op.kind == RECORD) { op.event->stream = s; op.event->at = s->end + 1; }
    if (op.kind == WAIT) op.seen = *op.event;
    s->ops[s->end++ % MOST] = op;
    return SUCCESS;
}

/* ---- devices and contexts ---- */
static int context, pool;
int cuInit(unsigned flags) { return number("FAKE_CUDA_INIT", 0); }
int cuDriverGetVersion(int *v) { *v = number("FAKE_CUDA_VERSION", 13000); return SUCCESS; }
int cuDeviceGetCount(int *n) { *n = number("FAKE_CUDA_COUNT", 1); return SUCCESS; }
int cuDeviceGet(int *d, int i) { *d = i; return i < number("FAKE_CUDA_COUNT", 1) ? SUCCESS : BAD_DEVICE; }
int cuDeviceGetName(char *name, int size, int d) {
    const char *n = getenv("FAKE_CUDA_NAME");
    snprintf(name, size, "%s", n ? n : "NVIDIA H200");
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = number("FAKE_CUDA_MEMORY", 1L << 37); return SUCCESS; }
int cuDeviceTotalMem(size_t *n, int d) { return cuDeviceTotalMem_v2(n, d); }
int cuDeviceGetAttribute(int *v, int a, int d) {
    *v = a == 75 ? 9 : a == 76 ? 0 : a == 97 ? 232448 : a == 115 || a == 41 ? 1 : 0;
    return SUCCESS;
}
int cuDeviceGetUuid_v2(void *u, int d) { memset(u, d, 16); return SUCCESS; }
int cuDeviceGetUuid(void *u, int d) { return cuDeviceGetUuid_v2(u, d); }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = &context; note("context", d, 0); return SUCCESS; }
int cuDevicePrimaryCtxRelease(int d) { return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int d) { return SUCCESS; }
int cuCtxSetCurrent(void *c) { return SUCCESS; }
int cuCtxGetCurrent(void **c) { *c = &context; return SUCCESS; }
int cuCtxGetLimit(size_t *n, int which) { *n = 0; return SUCCESS; }
int cuCtxSetLimit(int which, size_t n) { return SUCCESS; }
int cuCtxGetDevice(int *d) { *d = 0; return SUCCESS; }
int cuCtxPushCurrent(void *c) { return SUCCESS; }
int cuCtxPopCurrent(void **c) { *c = &context; return SUCCESS; }
int cuCtxPushCurrent_v2(void *c) { return SUCCESS; }
int cuCtxPopCurrent_v2(void **c) { *c = &context; return SUCCESS; }
int cuCtxGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = -5; return SUCCESS; }
int cuGetErrorName(int e, const char **s) {
    *s = e == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : e == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_X";
    return SUCCESS;
}
int cuGetErrorString(int e, const char **s) { return cuGetErrorName(e, s); }

/* ---- memory ---- */
int cuMemGetInfo(size_t *free, size_t *all) {
    *all = number("FAKE_CUDA_MEMORY", 1L << 37);
    *free = *all - given;
    return SUCCESS;
}
int cuMemGetInfo_v2(size_t *free, size_t *all) { return cuMemGetInfo(free, all); }
static int take(void **p, size_t n) {
    if (given + n > (size_t)number("FAKE_CUDA_MEMORY", 1L << 37)) return OUT_OF_MEMORY;
    given += n;
    note("take", n, 0);
    *p = aligned_alloc(512, (n + 511) / 512 * 512);
    memset(*p, 0xAA, n);
    return SUCCESS;
}
int cuMemAlloc(void **p, size_t n) { return take(p, n); }
int cuMemAlloc_v2(void **p, size_t n) { return take(p, n); }
int cuMemAllocAsync(void **p, size_t n, Stream *s) { return of(s)->graph ? INVALID : take(p, n); }
int cuMemAllocFromPoolAsync(void **p, size_t n, void *which, Stream *s) { return cuMemAllocAsync(p, n, s); }
int cuMemFree(void *p) { note("free", 0, 0); return SUCCESS; }
int cuMemFree_v2(void *p) { return cuMemFree(p); }
int cuMemFreeAsync(void *p, Stream *s) { return of(s)->graph ? INVALID : cuMemFree(p); }
int cuMemAllocHost(void **p, size_t n) { note("pinned", n, 0); *p = calloc(n, 1); return SUCCESS; }
int cuMemAllocHost_v2(void **p, size_t n) { return cuMemAllocHost(p, n); }
int cuMemFreeHost(void *p) { return SUCCESS; }
int cuDeviceGetMemPool(void **p, int d) { *p = &pool; return SUCCESS; }
int cuDeviceGetDefaultMemPool(void **p, int d) { *p = &pool; return SUCCESS; }
int cuMemPoolGetAttribute(void *p, int a, void *v) { *(u64 *)v = 0; return SUCCESS; }
int cuMemPoolSetAttribute(void *p, int a, void *v) { return SUCCESS; }
int cuMemcpyAsync(char *to, const char *from, size_t n, Stream *s) {
    return ask(s, (Op){.kind = COPY, .to = to, .from = from, .size = n});
}
int cuMemsetD8Async(char *to, unsigned char value, size_t n, Stream *s) {
    return value ? INVALID : ask(s, (Op){.kind = CLEAR, .to = to, .size = n});
}
int cuPointerGetAttribute(void **v, int a, void *p) { *v = p; return SUCCESS; }

/* ---- streams, events, graphs ---- */
int cuStreamCreateWithPriority(Stream **s, unsigned flags, int priority) {
    *s = calloc(1, sizeof(Stream));
    note("stream", (long)*s, flags);
    return SUCCESS;
}
int cuStreamCreate(Stream **s, unsigned flags) { return cuStreamCreateWithPriority(s, flags, 0); }
int cuStreamDestroy(Stream *s) { return SUCCESS; }
int cuStreamDestroy_v2(Stream *s) { return SUCCESS; }
int cuStreamGetCtx(Stream *s, void **c) { *c = &context; return SUCCESS; }
int cuStreamGetFlags(Stream *s, unsigned *f) { *f = 1; return SUCCESS; }
int cuStreamGetPriority(Stream *s, int *p) { *p = 0; return SUCCESS; }
int cuStreamSynchronize(Stream *s) { run_to(of(s), of(s)->end); return SUCCESS; }
int cuStreamWaitEvent(Stream *s, Event *e, unsigned flags) { return ask(s, (Op){.kind = WAIT, .event = e}); }
int cuEventCreate(Event **e, unsigned flags) { *e = calloc(1, sizeof(Event)); return SUCCESS; }
int cuEventDestroy(Event *e) { return SUCCESS; }
int cuEventDestroy_v2(Event *e) { return SUCCESS; }
int cuEventRecord(Event *e, Stream *s) { return ask(s, (Op){.kind = RECORD, .event = e}); }
int cuEventQuery(Event *e) { return e->stream && e->stream->begun < e->at ? NOT_READY : SUCCESS; }
int cuEventSynchronize(Event *e) { if (e->stream) run_to(e->stream, e->at); return SUCCESS; }
int cuEventElapsedTime(float *ms, Event *a, Event *b) { *ms = 1.5; return cuEventQuery(b); }
int cuEventElapsedTime_v2(float *ms, Event *a, Event *b) { return cuEventElapsedTime(ms, a, b); }
int cuStreamBeginCapture(Stream *s, int mode) {
    s->graph = 1;
    s->captured = calloc(1, sizeof(Graph));
    note("capture", mode, 0);
    return SUCCESS;
}
int cuStreamBeginCapture_v2(Stream *s, int mode) { return cuStreamBeginCapture(s, mode); }
int cuStreamEndCapture(Stream *s, Graph **g) { s->graph = 0; *g = (Graph *)s->captured; return SUCCESS; }
int cuStreamGetCaptureInfo(Stream *s, int *status, u64 *id, void **g, void *d, void *e, size_t *n) {
    *status = s->graph;
    if (id) *id = 1;
    if (g) *g = s->captured;
    if (n) *n = 0;
    return SUCCESS;
}
int cuStreamIsCapturing(Stream *s, int *status) { *status = s->graph; return SUCCESS; }
int cuGraphInstantiateWithParams(Graph **x, Graph *g, void *params) {
    note("graph", g->end, 0);
    *x = g;
    *(int *)((char *)params + 24) = 0; /* result_out: success */
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(Graph **x, Graph *g, u64 flags) { note("graph", g->end, 0); *x = g; return SUCCESS; }
int cuGraphInstantiate(Graph **x, Graph *g, u64 flags) { return cuGraphInstantiateWithFlags(x, g, flags); }
int cuGraphUpload(Graph *g, Stream *s) { return SUCCESS; }
int cuGraphLaunch(Graph *g, Stream *s) {
    note("launch", g->end, 0);
    for (long i = 0; i < g->end; i++) ask(s, g->ops[i]);
    return SUCCESS;
}
int cuUserObjectCreate(void **u, void *p, void *destroy, unsigned n, unsigned flags) { *u = &pool; return SUCCESS; }
int cuUserObjectRelease(void *u, unsigned n) { return SUCCESS; }
int cuGraphRetainUserObject(void *g, void *u, unsigned n, unsigned flags) { return SUCCESS; }
int cuGraphReleaseUserObject(void *g, void *u, unsigned n) { return SUCCESS; }
int cuGraphExecGetFlags(void *g, u64 *flags) { *flags = 0; return SUCCESS; }
int cuGraphDestroy(void *g) { return SUCCESS; }
int cuGraphExecDestroy(void *g) { return SUCCESS; }

/* ---- kernels ---- */
int cuModuleLoadData(void **m, const void *image) { *m = &pool; return SUCCESS; }
int cuModuleUnload(void *m) { return SUCCESS; }
int cuModuleGetFunction(void **f, void *m, const char *name) { *f = strdup(name); return SUCCESS; }
int cuFuncGetAttribute(int *v, int a, void *f) { *v = a == 0 ? 1024 : 32; return SUCCESS; }
int cuFuncSetAttribute(void *f, int a, int v) { return SUCCESS; }
int cuFuncSetCacheConfig(void *f, int c) { return SUCCESS; }
typedef struct { unsigned grid[3], block[3], shared; Stream *stream; void *attributes; unsigned count; } Launch;
int cuLaunchKernelEx(const Launch *l, void *f, void **parameters, void **extra) {
    return ask(l->stream, (Op){.kind = KERNEL, .name = f, .grid = l->grid[0]});
}

static int missing(void) { return 801; } /* CUDA_ERROR_NOT_SUPPORTED */
int cuGetProcAddress_v2(const char *name, void **f, int version, u64 flags, int *status) {
    static void *self;
    if (!self) { Dl_info us; dladdr((void *)cuGetProcAddress_v2, &us); self = dlopen(us.dli_fname, RTLD_NOW); }
    *f = strcmp(name, "cuGetProcAddress") ? dlsym(self, name) : (void *)cuGetProcAddress_v2;
    if (!*f) *f = (void *)missing;
    if (status) *status = 0;
    return SUCCESS;
}
int cuGetProcAddress(const char *name, void **f, int version, u64 flags) {
    return cuGetProcAddress_v2(name, f, version, flags, 0);
}
