// Runs CUDA kernels on the CPU, to test their logic where there is no GPU; emulated_kernels.py puts it before the source.
//
// Every thread of a block is a fiber that runs until it waits at a barrier or in a shuffle.  Which warp and which lane
// goes on then, and which block comes next, can be chosen: a result that depends on the choice is a race.  A barrier
// that not all threads reach is reported; threads that have returned are missing too.  Shared memory is garbage when a
// block starts.  What NVRTC refuses (INFINITY, atomicAdd on long long, max of float and int) is refused.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#undef INFINITY
#undef NAN

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// A section of its own, so that all shared memory can be filled; `used`: the compiler must not guess what is in it.
#define __shared__ static __attribute__((section("cuda_shared"), used))

struct uint3 { unsigned x, y, z; };
static uint3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;
extern "C" char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

namespace emulation {

typedef unsigned long long Bits;
const Bits GARBAGE = 0x7FFA7FFA7FFA7FFAull;  // NaN as float, double and bfloat16, and absurd as an integer
const int THREADS = 1024, STACK = 64 << 10;
const unsigned BALLOT = 32;  // in the place of a lane to take from: the set of lanes that give 1
enum Order { forward, backward, shuffled };

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  bool begun;
  int line;               // where it waits
  unsigned mask, source;  // of a warp operation: the lanes that take part, and the one to take from, or BALLOT
  Bits given, taken;
};
struct Warp { unsigned lanes, ready, in_warp_op, at_barrier; };  // sets of lanes; in none of the last three: returned

static Fiber fibers[THREADS];
static Warp warps[THREADS / 32];
static int current;  // the thread that runs
static jmp_buf scheduler;
static void (*kernel)(void**);
static void** arguments;
static Order order;
static Bits state;

static unsigned random_below(unsigned n) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return (state >> 33) % n;
}

static std::vector<unsigned> sequence(unsigned n) {  // 0 .. n - 1 in the order that was chosen
  std::vector<unsigned> s(n);
  for (unsigned i = 0; i < n; i++) s[i] = order == backward ? n - 1 - i : i;
  if (order == shuffled)
    for (unsigned i = n; i > 1; i--) std::swap(s[i - 1], s[random_below(i)]);
  return s;
}

// The thread that runs waits in `set` of its warp until the scheduler lets it go on.
__attribute__((noinline)) static void wait(unsigned Warp::*set, int line) {
  Warp& warp = warps[current / 32];
  unsigned lane = 1u << current % 32;
  warp.ready &= ~lane;
  if (set) warp.*set |= lane;
  fibers[current].line = line;
  if (!_setjmp(fibers[current].here)) _longjmp(scheduler, 1);
}

static void thread() {
  for (;;) kernel(arguments), wait(nullptr, 0);  // the fiber lives on for the next block
}

__attribute__((noinline)) static void resume(unsigned t) {
  static char* stacks = new char[THREADS * STACK];  // pages come when they are touched
  Fiber& fiber = fibers[current = t];
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stacks + t * STACK;
  fiber.start.uc_stack.ss_size = STACK;
  makecontext(&fiber.start, thread, 0);
  setcontext(&fiber.start);
}

// Lanes whose whole mask has come to the same warp operation exchange values and go on.
static void release(Warp& warp, Fiber* lanes) {
  for (int i = 0; i < 32; i++) {
    if (!(warp.in_warp_op >> i & 1)) continue;
    unsigned group = lanes[i].mask & warp.lanes;
    bool complete = (warp.in_warp_op & group) == group;
    for (int j = 0; j < 32; j++)
      if (group >> j & 1) complete = complete && lanes[j].mask == lanes[i].mask && lanes[j].line == lanes[i].line;
    if (!complete) continue;
    Bits given = 0;
    for (int j = 0; j < 32; j++)
      if (group >> j & 1) given |= (lanes[j].given & 1) << j;
    for (int j = 0; j < 32; j++)
      if (group >> j & 1)
        lanes[j].taken = lanes[j].source == BALLOT ? given
                         : group >> lanes[j].source & 1 ? lanes[lanes[j].source].given : GARBAGE;
    warp.in_warp_op &= ~group;
    warp.ready |= group;
  }
}

// Nothing is ready: the barrier opens if all threads are at it; otherwise the block has ended (null) or is stuck (why).
static const char* open_barrier(int threads, bool& opened) {
  static char message[300];
  int at_barrier = 0, in_warp_op = 0, first = 0, last = 0;
  for (int t = 0; t < threads; t++) {
    bool here = warps[t / 32].at_barrier >> t % 32 & 1, there = warps[t / 32].in_warp_op >> t % 32 & 1;
    at_barrier += here, in_warp_op += there;
    if (!here && !there) continue;
    if (!first || fibers[t].line < first) first = fibers[t].line;
    if (fibers[t].line > last) last = fibers[t].line;
  }
  opened = at_barrier == threads && first == last;
  if (opened)
    for (Warp& warp : warps) warp.ready = warp.at_barrier, warp.at_barrier = 0;
  if (opened || !(at_barrier || in_warp_op)) return nullptr;
  snprintf(message, sizeof message,
           "deadlock in block (%u, %u, %u): of %d threads %d wait at __syncthreads() and %d in a warp operation, "
           "lines %d to %d; %d have returned", blockIdx.x, blockIdx.y, blockIdx.z, threads, at_barrier, in_warp_op,
           first, last, threads - at_barrier - in_warp_op);
  for (Fiber& fiber : fibers) fiber.begun = false;  // what is left of them is given up
  return message;
}

static const char* run_block(int threads) {
  for (char* p = __start_cuda_shared; p < __stop_cuda_shared; p++) *p = ((const char*)&GARBAGE)[(size_t)p % 8];
  for (int w = 0; w < THREADS / 32; w++) {
    int n = threads - 32 * w;
    unsigned lanes = n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0;
    warps[w] = {lanes, lanes, 0, 0};
  }
  for (;;) {
    int ready[THREADS / 32], n = 0;
    for (int w = 0; w < THREADS / 32; w++)
      if (warps[w].ready) ready[n++] = w;
    bool opened = false;
    if (!n) {
      const char* stuck = open_barrier(threads, opened);
      if (opened) continue;
      return stuck;
    }
    int w = ready[order == forward ? 0 : order == backward ? n - 1 : random_below(n)];  // runs ahead as far as it can
    for (unsigned lane : sequence(32))
      if (warps[w].ready >> lane & 1) resume(32 * w + lane);
    release(warps[w], fibers + 32 * w);
  }
}

// As long as it lives, what is smaller than the smallest normal number is read and written as 0 of its sign: -ftz=true.
struct Flush {
  unsigned long long before;
#if defined(__SSE2__)
  static unsigned long long get() { return _mm_getcsr(); }
  static void set(unsigned long long bits) { _mm_setcsr((unsigned)bits); }
  static const unsigned long long ON = 0x8040;  // flush to zero, denormals are zero
#elif defined(__aarch64__)
  static unsigned long long get() { unsigned long long bits; asm volatile("mrs %0, fpcr" : "=r"(bits)); return bits; }
  static void set(unsigned long long bits) { asm volatile("msr fpcr, %0" : : "r"(bits)); }
  static const unsigned long long ON = 1ull << 24;
#else
#error "how this processor flushes subnormal numbers to zero is not known here"
#endif
  explicit Flush(bool on) : before(get()) { if (on) set(before | ON); }
  ~Flush() { set(before); }
};

static const char* launch(
    void (*run)(void**), void** args, const unsigned* g, const unsigned* b, int how, Bits seed, int flushes) {
  Flush flush(flushes);
  kernel = run, arguments = args, order = (Order)how, state = seed;
  gridDim = {g[0], g[1], g[2]}, blockDim = {b[0], b[1], b[2]};
  for (unsigned i : sequence(g[0] * g[1] * g[2])) {
    blockIdx = {i % g[0], i / g[0] % g[1], i / g[0] / g[1]};
    if (const char* stuck = run_block(b[0] * b[1] * b[2])) return stuck;
  }
  return nullptr;
}

template <class T> void describe(char*& out) {  // f4: float; i8: long long; *i2: pointer to unsigned short
  if constexpr (std::is_pointer_v<T>) {
    *out++ = '*';
    describe<std::remove_cv_t<std::remove_pointer_t<T>>>(out);
  } else if constexpr (std::is_void_v<T>) {
    out += sprintf(out, "void ");
  } else {
    out += sprintf(out, "%c%d ", std::is_floating_point_v<T> ? 'f' : std::is_integral_v<T> ? 'i' : '?', (int)sizeof(T));
  }
}

template <auto k> struct Kernel;
template <class... P, void (*k)(P...)> struct Kernel<k> {
  template <size_t... I> static void call(void** a, std::index_sequence<I...>) { k(*(std::decay_t<P>*)a[I]...); }
  static void run(void** a) { call(a, std::index_sequence_for<P...>()); }
  static const char* signature() {
    static char text[8 * sizeof...(P) + 1], *end = text;
    if (end == text) (describe<P>(end), ...);
    return text;
  }
};

inline int bounds(int threads = THREADS, int = 0) { return threads; }

template <class T> auto exchange(unsigned mask, T value, int source, int line) {
  auto given = +value;  // what is narrower than int goes as int
  static_assert(std::is_arithmetic_v<T> && sizeof given <= sizeof(Bits), "CUDA has no shuffle of this type");
  Fiber& fiber = fibers[current];
  memcpy(&fiber.given, &given, sizeof given);
  fiber.mask = mask, fiber.source = source;
  wait(&Warp::in_warp_op, line);
  memcpy(&given, &fiber.taken, sizeof given);
  return given;
}

template <class T, class... Ts> using if_one_of = std::enable_if_t<(std::is_same_v<T, Ts> || ...), T>;
template <class A, class B, class T> using if_comparable = std::enable_if_t<
    std::is_floating_point_v<A> ? std::is_floating_point_v<B> : std::is_integral_v<B> && sizeof(A) == sizeof(B), T>;

template <class To, class From> To bit_cast(From from) {
  To to;
  static_assert(sizeof to == sizeof from, "");
  memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace emulation

// What emulated_kernels.py calls for a kernel: launch, types of the parameters, and the most threads of a block.
#define EMULATED_ENTRY extern "C" __attribute__((visibility("default"))) auto
#define EMULATED_KERNEL(name, ...)                                                                         \
  EMULATED_ENTRY launch_##name(void** a, const unsigned* g, const unsigned* b, int o, unsigned long long s, int f) { \
    return emulation::launch(emulation::Kernel<name>::run, a, g, b, o, s, f);                              \
  }                                                                                                        \
  EMULATED_ENTRY signature_##name() { return emulation::Kernel<name>::signature(); }                               \
  EMULATED_ENTRY bounds_##name() { return emulation::bounds(__VA_ARGS__); }

inline void __syncthreads(int line = __builtin_LINE()) { emulation::wait(&emulation::Warp::at_barrier, line); }

inline unsigned __ballot_sync(unsigned mask, int on, int line = __builtin_LINE()) {
  return emulation::exchange(mask, (unsigned)(on != 0), emulation::BALLOT, line);
}
#define LANE (emulation::current % 32)
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) { emulation::exchange(mask, 0, LANE, line); }
#define SHUFFLE(name, second, from)                                                                        \
  template <class T>                                                                                       \
  auto name(unsigned mask, T value, second, int width = 32, int line = __builtin_LINE()) {                 \
    int lane = LANE, base = lane & -width, from_lane = from;                                               \
    return emulation::exchange(mask, value, from_lane, line);                                              \
  }
SHUFFLE(__shfl_sync, int source, base + (source & (width - 1)))
SHUFFLE(__shfl_xor_sync, int bits, (lane ^ bits) < base + width ? lane ^ bits : lane)
SHUFFLE(__shfl_down_sync, unsigned delta, lane + delta < unsigned(base + width) ? lane + delta : lane)
SHUFFLE(__shfl_up_sync, unsigned delta, lane - int(delta) >= base ? lane - delta : lane)
#undef SHUFFLE
#undef LANE

#define ATOMIC(name, result, ...)                                                                             \
  template <class T> emulation::if_one_of<T, __VA_ARGS__> name(T* p, std::common_type_t<T> v) {                \
    T old = *p;                                                                                                \
    *p = result;                                                                                               \
    return old;                                                                                                \
  }
ATOMIC(atomicAdd, old + v, int, unsigned, unsigned long long, float, double)
ATOMIC(atomicExch, v, int, unsigned, unsigned long long, float)
ATOMIC(atomicMax, v > old ? v : old, int, unsigned, unsigned long long, long long)
ATOMIC(atomicMin, v < old ? v : old, int, unsigned, unsigned long long, long long)
#undef ATOMIC
template <class T> emulation::if_one_of<T, int, unsigned, unsigned long long> atomicCAS(
    T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
  T old = *p;
  if (old == expected) *p = v;
  return old;
}

#define EXTREMUM(name, floating, sign)                                                                        \
  template <class A, class B, class T = std::common_type_t<A, B>>                                              \
  emulation::if_comparable<A, B, T> name(A a, B b) {                                                           \
    if constexpr (std::is_floating_point_v<T>) return floating(T(a), T(b)); /* of NaN and a number: the number */ \
    else return T(a) sign T(b) ? T(a) : T(b);                                                                  \
  }
EXTREMUM(max, fmax, >)
EXTREMUM(min, fmin, <)
#undef EXTREMUM

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
template <class T> T __ldg(const T* p) { return *p; }
inline unsigned __float_as_uint(float x) { return emulation::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return emulation::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return emulation::bit_cast<float>(x); }
inline float __int_as_float(int x) { return emulation::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulation::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulation::bit_cast<double>(x); }
