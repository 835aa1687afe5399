// A PaddlePaddle custom device ("plugin") whose memory is host memory, so that code for accelerators runs without one.
//
// Part 1, the runtime, fills Paddle's C device interface with malloc, memmove and counters. Paddle then has a device
// that is not the CPU: automatic mixed precision and GradScaler are live on it, its memory and its random generator are
// its own, copies to the host can be counted, and memory can run out.
//
// Part 2, the kernels, registers every dense CPU kernel of the running Paddle for this device. The registered function
// is a forwarder: it shows the device's tensors to the CPU kernel as host tensors (same bytes, no copy) and hands back
// what the kernel allocated as device memory. For float16 and bfloat16, where Paddle has no CPU kernel, it widens the
// inputs to float32, runs the float32 kernel and rounds the outputs to nearest even: what a GPU kernel that accumulates
// in float32 does at its borders. (A cast has a CPU kernel, and 2.6's truncates where it should round.)
//
// Part 3, fake_ccl.h, lets the devices of several processes talk.
//
// It is a model of an accelerator's rules, not of its arithmetic, its speed or its asynchrony: a missing synchronize()
// cannot show. x86-64 Linux only (System V calling convention). It must be built against the headers of the very wheel
// that loads it; harness.py does that.
//
// Environment, read when Paddle is imported: FAKE_GPU_NAME, the device type (fake_gpu); FAKE_GPU_COUNT, devices (1).
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/backends/device_ext.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_context.h"
#include "paddle/phi/core/kernel_factory.h"
#include "paddle/phi/core/kernel_registry.h"

#ifndef __x86_64__
#error "fake_gpu forwards calls by the x86-64 System V convention only"
#endif

namespace {

// ---- Part 1: the runtime ----------------------------------------------------------------------------------------

constexpr int kMaxDevices = 16;
std::atomic<uint64_t> h2d{0}, d2h{0}, d2d{0}, synchronizations{0};
std::atomic<uint64_t> used[kMaxDevices], limit{1ull << 30};
thread_local int current_device = 0;

const char* Environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

C_Status Nothing() { return C_SUCCESS; }
C_Status NothingOn(const C_Device) { return C_SUCCESS; }
C_Status SetDevice(const C_Device device) { current_device = device->id; return C_SUCCESS; }
C_Status GetDevice(const C_Device device) { device->id = current_device; return C_SUCCESS; }

size_t DeviceCount() { return std::min(std::max(std::atoi(Environment("FAKE_GPU_COUNT", "1")), 1), kMaxDevices); }
C_Status GetDeviceCount(size_t* count) { *count = DeviceCount(); return C_SUCCESS; }
C_Status GetDeviceList(size_t* ids) {
  for (size_t i = 0; i < DeviceCount(); ++i) ids[i] = i;
  return C_SUCCESS;
}

// Streams and events are empty boxes: everything has finished when it returns.
template <typename T>
C_Status NewBox(const C_Device, T* box) {
  *box = reinterpret_cast<T>(std::malloc(8));
  return *box ? C_SUCCESS : C_FAILED;
}
template <typename T>
C_Status DropBox(const C_Device, T box) { std::free(box); return C_SUCCESS; }
template <typename T>
C_Status QueryBox(const C_Device, T) { return C_SUCCESS; }
C_Status StreamCallback(const C_Device device, C_Stream stream, C_Callback call, void* data) {
  C_Status status = C_SUCCESS;
  call(device, stream, data, &status);
  return status;
}
C_Status NothingOnEvent(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }
C_Status SynchronizeDevice(const C_Device) { ++synchronizations; return C_SUCCESS; }
template <typename T>
C_Status Synchronize(const C_Device, T) { ++synchronizations; return C_SUCCESS; }

C_Status HostAllocate(const C_Device, void** memory, size_t bytes) {
  return posix_memalign(memory, 256, bytes ? bytes : 1) ? C_FAILED : C_SUCCESS;
}
C_Status HostFree(const C_Device, void* memory, size_t) { std::free(memory); return C_SUCCESS; }
C_Status DeviceAllocate(const C_Device device, void** memory, size_t bytes) {
  auto& mine = used[device->id % kMaxDevices];
  if (mine.fetch_add(bytes) + bytes > limit || HostAllocate(device, memory, bytes) != C_SUCCESS) {
    mine -= bytes;
    return C_FAILED;
  }
  std::memset(*memory, 0xA5, bytes);  // fresh device memory is never conveniently zero
  return C_SUCCESS;
}
C_Status DeviceFree(const C_Device device, void* memory, size_t bytes) {
  used[device->id % kMaxDevices] -= bytes;
  return HostFree(device, memory, bytes);
}
C_Status DeviceSet(const C_Device, void* memory, unsigned char value, size_t bytes) {
  std::memset(memory, value, bytes);
  return C_SUCCESS;
}
C_Status MemoryStats(const C_Device device, size_t* total, size_t* free) {
  uint64_t mine = used[device->id % kMaxDevices], all = limit;
  *total = all;
  *free = all > mine ? all - mine : 0;
  return C_SUCCESS;
}
C_Status MinimumChunk(const C_Device, size_t* bytes) { *bytes = 256; return C_SUCCESS; }

template <std::atomic<uint64_t>* counter>
C_Status Copy(const C_Device, void* to, const void* from, size_t bytes) {
  ++*counter;
  std::memmove(to, from, bytes);
  return C_SUCCESS;
}
template <std::atomic<uint64_t>* counter>
C_Status CopyOnStream(const C_Device device, C_Stream, void* to, const void* from, size_t bytes) {
  return Copy<counter>(device, to, from, bytes);
}
C_Status CopyAcross(const C_Device to_device, const C_Device, void* to, const void* from, size_t bytes) {
  return Copy<&d2d>(to_device, to, from, bytes);
}
C_Status CopyAcrossOnStream(const C_Device to_device, const C_Device, C_Stream, void* to, const void* from, size_t bytes) {
  return Copy<&d2d>(to_device, to, from, bytes);
}

// ---- Part 2: the kernels ----------------------------------------------------------------------------------------

using phi::DataType;
using phi::DenseTensor;
using Memory = std::shared_ptr<phi::Allocation>;

// A tensor's protected members (2.6 has no public accessor for them).
struct Inside : DenseTensor {
  static Memory& Holder(DenseTensor* tensor) { return tensor->*(&Inside::holder_); }
  static const Memory& Holder(const DenseTensor* tensor) { return tensor->*(&Inside::holder_); }
  static phi::DenseTensorMeta& Meta(DenseTensor* tensor) { return tensor->*(&Inside::meta_); }
};

// Device memory shown to CPU kernels as host memory; owns the original.
struct HostView : phi::Allocation {
  explicit HostView(Memory original)
      : phi::Allocation(original->ptr(), original->size(), phi::CPUPlace()), device(std::move(original)) {}
  Memory device;
};

// What CPU kernels allocate their outputs from: the device's own allocator.
struct ViewAllocator : phi::Allocator {
  const phi::Allocator* device = nullptr;
  AllocationPtr Allocate(size_t bytes) override {
    Memory memory(const_cast<phi::Allocator*>(device)->Allocate(bytes));
    return AllocationPtr(new HostView(std::move(memory)), [](phi::Allocation* view) { delete view; });
  }
  bool IsAllocThreadSafe() const override { return true; }
};

struct HostContext {  // the CPU context lent to forwarded kernels
  ViewAllocator allocator;
  phi::CPUContext cpu{phi::CPUPlace()};
};

phi::DeviceContext* CpuContext() { return phi::DeviceContextPool::Instance().Get(phi::CPUPlace()); }

phi::CPUContext* HostContextOf(const phi::DeviceContext& device) {
  static std::mutex mutex;
  static auto* all = new std::map<const phi::DeviceContext*, std::unique_ptr<HostContext>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& context = (*all)[&device];
  if (!context) {
    context.reset(new HostContext);
    context->cpu.SetHostAllocator(&CpuContext()->GetAllocator());
    context->cpu.SetZeroAllocator(&CpuContext()->GetZeroAllocator());
    context->cpu.SetHostZeroAllocator(&CpuContext()->GetZeroAllocator());
    context->cpu.SetAllocator(&context->allocator);
  }
  context->allocator.device = &device.GetAllocator();
  try {
    context->cpu.SetGenerator(device.GetGenerator());  // random operators draw from the device's generator
    context->cpu.SetHostGenerator(device.GetHostGenerator());
  } catch (...) {  // a communicator's context has none
  }
  return &context->cpu;
}

bool IsHalf(DataType type) { return type == DataType::FLOAT16 || type == DataType::BFLOAT16; }

void Widen(DataType half, float* to, const void* from, int64_t count) {
  if (half == DataType::FLOAT16) {
    auto* values = static_cast<const _Float16*>(from);
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(values[i]);
  } else {
    auto* values = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits = static_cast<uint32_t>(values[i]) << 16;
      std::memcpy(to + i, &bits, 4);
    }
  }
}

// To nearest even, as GPUs round (Paddle's own CPU classes may truncate, by version and compiler flags).
void Narrow(DataType half, void* to, const float* from, int64_t count) {
  if (half == DataType::FLOAT16) {
    auto* values = static_cast<_Float16*>(to);
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<_Float16>(from[i]);
  } else {
    auto* values = static_cast<uint16_t*>(to);
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits;
      std::memcpy(&bits, from + i, 4);
      const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
      values[i] = nan ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    }
  }
}

struct Entry {           // one registered kernel
  phi::Kernel cpu;       // what it forwards to
  DataType half;         // the type that is widened, or UNDEFINED
  bool is_optimizer;     // may come with a float32 master weight
};
std::vector<Entry>& Entries() {
  static auto* entries = new std::vector<Entry>;
  return *entries;
}

// One forwarded call: host stand-ins for its device tensors, and the way back.
class Call {
 public:
  Call(const Entry& entry, const phi::DeviceContext& device)
      : entry_(entry), device_(device), host_(HostContextOf(device)) {}

  phi::CPUContext* host() { return host_; }

  // Also for outputs that already hold memory, so that updates in place land in the same bytes.
  DenseTensor* In(const DenseTensor* tensor) {
    if (!tensor) return nullptr;
    const bool widen = entry_.half != DataType::UNDEFINED && IsHalf(tensor->dtype());
    const bool on_device = tensor->initialized() && tensor->place().GetType() == phi::AllocationType::CUSTOM;
    if (!tensor->initialized() || !(widen || on_device)) return Keep(new DenseTensor(*tensor));
    auto found = by_data_.find(tensor->data());
    auto meta = tensor->meta();
    DenseTensor* stand_in;
    if (widen && found != by_data_.end() && found->second->numel() == tensor->numel()) {
      stand_in = Keep(new DenseTensor(*found->second));  // the same bytes in the shape of this tensor
      meta.dtype = stand_in->dtype();
      meta.offset = stand_in->meta().offset;
      Inside::Meta(stand_in) = meta;
      return stand_in;
    }
    if (widen) {
      stand_in = Keep(new DenseTensor);
      meta.dtype = DataType::FLOAT32;
      meta.offset = 0;
      Inside::Meta(stand_in) = meta;
      auto* values = static_cast<float*>(CpuContext()->Alloc(stand_in, DataType::FLOAT32));
      Widen(tensor->dtype(), values, tensor->data(), tensor->numel());
    } else {
      Memory& view = views_[Inside::Holder(tensor).get()];  // one per allocation: kernels compare them to notice aliases
      if (!view) view.reset(new HostView(Inside::Holder(tensor)));
      stand_in = Keep(new DenseTensor(view, meta));
    }
    if (tensor->numel() > 0) by_data_[tensor->data()] = stand_in;
    return stand_in;
  }

  DenseTensor* Out(DenseTensor* tensor) {
    if (!tensor) return nullptr;
    const bool half =
        entry_.half != DataType::UNDEFINED && (IsHalf(tensor->dtype()) || tensor->dtype() == DataType::UNDEFINED);
    DenseTensor* stand_in;
    if (tensor->initialized() && (by_data_.count(tensor->data()) || !half)) {
      stand_in = In(tensor);
    } else {
      stand_in = Keep(new DenseTensor);
      auto meta = tensor->meta();
      if (half) meta.dtype = DataType::FLOAT32;
      Inside::Meta(stand_in) = meta;
    }
    DataType narrowed = !half ? DataType::UNDEFINED : IsHalf(tensor->dtype()) ? tensor->dtype() : entry_.half;
    outputs_.push_back({tensor, stand_in, narrowed});
    return stand_in;
  }

  // A half parameter with a float32 master: the float32 kernel updates the master, which is rounded into the parameter.
  void UseMaster(const DenseTensor* parameter, const DenseTensor* candidate) {
    if (candidate && candidate->initialized() && IsHalf(parameter->dtype()) && parameter->numel() > 0 &&
        candidate->dtype() == DataType::FLOAT32 && candidate->dims() == parameter->dims())
      by_data_[parameter->data()] = In(candidate);
  }

  // Gives what the kernel produced to the device tensors.
  void Finish() {
    for (auto& [real, stand_in, half] : outputs_) {
      auto meta = stand_in->meta();
      if (!stand_in->initialized()) {
        if (half != DataType::UNDEFINED) meta.dtype = half;
        if (Inside::Holder(stand_in)) {  // an empty tensor has an empty buffer
          Inside::Meta(real) = meta;
          device_.Alloc(real, meta.dtype);
        } else if (!real->initialized()) {
          Inside::Meta(real) = meta;
        }
      } else if (half != DataType::UNDEFINED && stand_in->dtype() == DataType::FLOAT32) {
        meta.dtype = half;
        meta.offset = real->initialized() ? real->meta().offset : 0;
        Inside::Meta(real) = meta;
        Narrow(half, device_.Alloc(real, half), static_cast<const float*>(stand_in->data()), stand_in->numel());
      } else if (auto* view = dynamic_cast<HostView*>(Inside::Holder(stand_in).get())) {
        Inside::Holder(real) = view->device;
        Inside::Meta(real) = meta;
      } else {  // plain host memory: bring it over
        meta.offset = 0;
        Inside::Meta(real) = meta;
        std::memcpy(device_.Alloc(real, meta.dtype), stand_in->data(), stand_in->numel() * phi::SizeOf(meta.dtype));
      }
    }
  }

  std::vector<std::shared_ptr<void>> scratch;  // argument objects that must outlive the kernel

 private:
  struct Output { DenseTensor* real; DenseTensor* stand_in; DataType half; };
  DenseTensor* Keep(DenseTensor* tensor) { kept_.emplace_back(tensor); return tensor; }

  const Entry& entry_;
  const phi::DeviceContext& device_;
  phi::CPUContext* host_;
  std::vector<std::unique_ptr<DenseTensor>> kept_;
  std::unordered_map<const void*, DenseTensor*> by_data_;  // stand-ins, by the bytes they stand for
  std::unordered_map<const phi::Allocation*, Memory> views_;
  std::vector<Output> outputs_;
};

using Tensors = std::vector<const DenseTensor*>;
using MaybeTensor = paddle::optional<DenseTensor>;
using MaybeTensors = paddle::optional<Tensors>;
using OutTensors = std::vector<DenseTensor*>;
enum class Kind { kTensor, kMaybe, kList, kMaybeList, kOut, kOutList, kOther };

Kind KindOf(const std::type_index& type) {
  if (type == typeid(DenseTensor)) return Kind::kTensor;
  if (type == typeid(MaybeTensor)) return Kind::kMaybe;
  if (type == typeid(Tensors)) return Kind::kList;
  if (type == typeid(MaybeTensors)) return Kind::kMaybeList;
  if (type == typeid(DenseTensor*)) return Kind::kOut;
  if (type == typeid(OutTensors)) return Kind::kOutList;
  return Kind::kOther;
}

// An argument list as it travels: 6 integer registers, 8 vector registers and stack slots, in order of declaration.
using Word = uint64_t;
constexpr int kStack = 40;
struct Frame { Word integers[6]; double vectors[8]; Word stack[kStack]; };

template <typename T, typename... Arguments>
Word NewArgument(Call* call, Arguments&&... arguments) {
  auto object = std::make_shared<T>(std::forward<Arguments>(arguments)...);
  call->scratch.push_back(object);
  return reinterpret_cast<Word>(object.get());
}

// A typed call, as the eager interface makes it. It carries nothing that describes the arguments, so the kernel's own
// definition says which words are tensors; those are replaced by their stand-ins.
void RunTyped(const Entry& entry, const Word* integers, const double* vectors, const Word* stack) {
  Frame frame;
  std::memcpy(frame.integers, integers, sizeof(frame.integers));
  std::memcpy(frame.vectors, vectors, sizeof(frame.vectors));
  const auto& definition = entry.cpu.args_def();
  int next_integer = 0, next_vector = 0, next_stack = 0;
  auto take = [&](bool is_vector) -> Word* {  // where the next argument lives
    int& next = is_vector ? next_vector : next_integer;
    if (next < (is_vector ? 8 : 6))
      return is_vector ? reinterpret_cast<Word*>(&frame.vectors[next++]) : &frame.integers[next++];
    frame.stack[next_stack] = stack[next_stack];
    return &frame.stack[next_stack++];
  };
  Word* context = take(false);
  Call call(entry, *reinterpret_cast<const phi::DeviceContext*>(*context));
  *context = reinterpret_cast<Word>(static_cast<phi::DeviceContext*>(call.host()));

  std::vector<std::pair<Word*, Kind>> inputs;
  for (auto& input : definition.input_defs()) inputs.push_back({take(false), KindOf(input.type_index)});
  if (entry.is_optimizer && inputs[0].second == Kind::kTensor) {
    for (auto& [word, kind] : inputs)
      if (kind == Kind::kMaybe)
        call.UseMaster(reinterpret_cast<const DenseTensor*>(*inputs[0].first),
                       reinterpret_cast<const MaybeTensor*>(*word)->get_ptr());
  }
  for (auto& [word, kind] : inputs) {
    if (kind == Kind::kTensor) {
      *word = reinterpret_cast<Word>(call.In(reinterpret_cast<const DenseTensor*>(*word)));
    } else if (kind == Kind::kMaybe) {
      auto& maybe = *reinterpret_cast<const MaybeTensor*>(*word);
      if (maybe) *word = NewArgument<MaybeTensor>(&call, *call.In(maybe.get_ptr()));
    } else {
      auto* list = kind == Kind::kList ? reinterpret_cast<const Tensors*>(*word)
                                       : reinterpret_cast<const MaybeTensors*>(*word)->get_ptr();
      if (!list) continue;
      Tensors stand_ins;
      for (auto* tensor : *list) stand_ins.push_back(call.In(tensor));
      *word = kind == Kind::kList ? NewArgument<Tensors>(&call, stand_ins) : NewArgument<MaybeTensors>(&call, stand_ins);
    }
  }
  for (auto& attribute : definition.attribute_defs()) {
    auto type = attribute.type_index;
    Word* word = take(type == phi::AttributeType::FLOAT32 || type == phi::AttributeType::FLOAT64);
    if (type == phi::AttributeType::DATA_TYPE && entry.half != DataType::UNDEFINED &&
        IsHalf(static_cast<DataType>(static_cast<int>(*word))))
      *word = static_cast<Word>(DataType::FLOAT32);
  }
  for (auto& output : definition.output_defs()) {
    Word* word = take(false);
    if (KindOf(output.type_index) == Kind::kOut) {
      *word = reinterpret_cast<Word>(call.Out(reinterpret_cast<DenseTensor*>(*word)));
    } else {
      OutTensors stand_ins;
      for (auto* tensor : *reinterpret_cast<const OutTensors*>(*word)) stand_ins.push_back(call.Out(tensor));
      *word = NewArgument<OutTensors>(&call, stand_ins);
    }
  }
  // Passing every register and stack slot calls a function of any signature.
#define FOUR(words, i) words[i], words[i + 1], words[i + 2], words[i + 3]
#define WORDS Word, Word, Word, Word
#define DOUBLES double, double, double, double
  using Any = void (*)(Word, Word, WORDS, DOUBLES, DOUBLES, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS,
                       WORDS, WORDS);
  auto& s = frame.stack;
  entry.cpu.GetVariadicKernelFn<Any>()(
      frame.integers[0], frame.integers[1], FOUR(frame.integers, 2), FOUR(frame.vectors, 0), FOUR(frame.vectors, 4),
      FOUR(s, 0), FOUR(s, 4), FOUR(s, 8), FOUR(s, 12), FOUR(s, 16), FOUR(s, 20), FOUR(s, 24), FOUR(s, 28), FOUR(s, 32),
      FOUR(s, 36));
  call.Finish();
}

// A call through a KernelContext, as static graphs and old operators make it.
void RunContext(const Entry& entry, phi::KernelContext* context) {
  const auto& definition = entry.cpu.args_def();
  Call call(entry, context->GetDeviceContext<phi::DeviceContext>());
  phi::KernelContext host(call.host());
  auto input = [&](int i) { return &context->InputAt<DenseTensor>(i); };
  if (entry.is_optimizer) {
    for (size_t i = 1; i < definition.input_defs().size(); ++i) {
      auto [first, last] = context->InputRangeAt(i);
      if (KindOf(definition.input_defs()[i].type_index) == Kind::kMaybe && last > first)
        call.UseMaster(input(0), input(first));
    }
  }
  for (size_t i = 0; i < definition.input_defs().size(); ++i) {
    auto [first, last] = context->InputRangeAt(i);
    for (int j = first; j < last; ++j) host.EmplaceBackInputWithoutSetRange(call.In(input(j)));
    host.AssignInputRange({first, last}, i);
  }
  for (size_t i = 0; i < context->AttrsSize(); ++i) host.EmplaceBackAttr(context->AttrAt(i));
  for (size_t i = 0; i < definition.output_defs().size(); ++i) {
    auto [first, last] = context->OutputRangeAt(i);
    for (int j = first; j < last; ++j)
      host.EmplaceBackOutputWithoutSetRange(call.Out(context->MutableOutputAt<DenseTensor>(j)));
    host.AssignOutputRange({first, last}, i);
  }
  entry.cpu(&host);
  call.Finish();
}
}  // namespace

extern "C" __attribute__((visibility("hidden"))) void fake_gpu_enter(
    uint32_t index, const Word* integers, const double* vectors, const Word* stack) {
  const Entry& entry = Entries()[index / 2];
  if (index % 2)
    RunContext(entry, reinterpret_cast<phi::KernelContext*>(integers[0]));
  else
    RunTyped(entry, integers, vectors, stack);
}

// Paddle hands a kernel function nothing that names the kernel, so each one needs an address of its own: a table of
// 16-byte stubs that load their index and fall into one common entry, which saves the argument registers.
#define FAKE_GPU_STUBS 40000
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
asm(R"(
    .text
    .p2align 4
    .hidden fake_gpu_stubs
    .globl fake_gpu_stubs
fake_gpu_stubs:
    .set fake_gpu_i, 0
    .rept )" TEXT(FAKE_GPU_STUBS) R"(
    .p2align 4
    movl $fake_gpu_i, %r11d
    jmp fake_gpu_common
    .set fake_gpu_i, fake_gpu_i + 1
    .endr
    .p2align 4
fake_gpu_common:
    .cfi_startproc
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    subq $112, %rsp
    movq %rdi, 0(%rsp)
    movq %rsi, 8(%rsp)
    movq %rdx, 16(%rsp)
    movq %rcx, 24(%rsp)
    movq %r8, 32(%rsp)
    movq %r9, 40(%rsp)
    movsd %xmm0, 48(%rsp)
    movsd %xmm1, 56(%rsp)
    movsd %xmm2, 64(%rsp)
    movsd %xmm3, 72(%rsp)
    movsd %xmm4, 80(%rsp)
    movsd %xmm5, 88(%rsp)
    movsd %xmm6, 96(%rsp)
    movsd %xmm7, 104(%rsp)
    movl %r11d, %edi
    movq %rsp, %rsi
    leaq 48(%rsp), %rdx
    leaq 16(%rbp), %rcx
    call fake_gpu_enter
    leave
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc
)");
extern "C" __attribute__((visibility("hidden"))) const char fake_gpu_stubs[];

namespace {
bool IsForwardable(const std::string& name, const phi::Kernel& kernel) {
  if (kernel.GetKernelRegisteredType() != phi::KernelRegisteredType::FUNCTION) return false;
  if (name.rfind("memcpy", 0) == 0 || name.rfind("strings_", 0) == 0) return false;
  const auto& definition = kernel.args_def();
  if (definition.input_defs().size() + definition.attribute_defs().size() + definition.output_defs().size() > kStack)
    return false;
  for (auto& input : definition.input_defs())
    if (KindOf(input.type_index) >= Kind::kOut) return false;
  for (auto& output : definition.output_defs()) {
    Kind kind = KindOf(output.type_index);
    if (kind != Kind::kOut && kind != Kind::kOutList) return false;
  }
  return true;
}

// Whether the library builds tensors of the size this file was compiled for: the headers of another wheel, or a
// missing macro, change it and would corrupt memory.
bool SameTensorLayout() {
  constexpr size_t kSize = sizeof(DenseTensor), kRoom = 512;
  alignas(64) static unsigned char room[kSize + kRoom];
  std::memset(room, 0x5C, sizeof(room));
  auto* tensor = new (room) DenseTensor;
  bool touched_last_word = false, touched_beyond = false;
  for (size_t i = kSize - 8; i < kSize; ++i) touched_last_word |= room[i] != 0x5C;
  for (size_t i = kSize; i < kSize + kRoom; ++i) touched_beyond |= room[i] != 0x5C;
  tensor->~DenseTensor();
  return touched_last_word && !touched_beyond;
}

void RegisterKernels(const char* device_type) {
  if (!SameTensorLayout()) {
    std::fprintf(stderr, "fake_gpu: built for another Paddle wheel; rebuild it\n");
    std::abort();
  }
  const auto backend = paddle::experimental::StringToBackend(device_type);
  static const std::set<std::string> optimizers = {"sgd",      "momentum", "adam",  "adamw", "adamax", "adagrad", "adadelta",
                                                   "rmsprop",  "lamb",     "nadam", "radam", "rprop",  "asgd"};
  // Registered for bfloat16 on the CPU, but they read float32 inside, or get bfloat16 under a float32 key (3.3).
  static const std::set<std::string> broken_in_half = {"cross_entropy_with_softmax", "cross_entropy_with_softmax_grad"};
  struct New { std::string name; phi::KernelKey key; Entry entry; };
  std::vector<New> found;
  auto& all = phi::KernelFactory::Instance().kernels();
  for (auto& [name, kernels] : all) {
    const bool is_optimizer = optimizers.count(name), broken = broken_in_half.count(name);
    for (auto& [key, kernel] : kernels) {
      if (key.backend() != phi::Backend::CPU || !IsForwardable(name, kernel)) continue;
      phi::KernelKey mine(backend, key.layout(), key.dtype());
      if (!(IsHalf(key.dtype()) && (is_optimizer || broken)))
        found.push_back({name, mine, {kernel, broken ? DataType::BFLOAT16 : DataType::UNDEFINED, is_optimizer}});
      if (key.dtype() != DataType::FLOAT32) continue;
      for (DataType half : {DataType::FLOAT16, DataType::BFLOAT16}) {
        const bool on_cpu = kernels.count(phi::KernelKey(key.backend(), key.layout(), half));
        if (on_cpu && !is_optimizer && !broken) continue;  // Paddle's own is forwarded as it is
        mine.set_dtype(half);
        found.push_back({name, mine, {kernel, half, is_optimizer}});
      }
    }
  }
  Entries().reserve(found.size());
  for (auto& [name, key, entry] : found) {
    const size_t index = Entries().size() * 2;
    if (index + 1 >= FAKE_GPU_STUBS) { std::fprintf(stderr, "fake_gpu: more kernels than stubs\n"); std::abort(); }
    Entries().push_back(entry);
    auto stub = [](size_t i) { return const_cast<char*>(fake_gpu_stubs + 16 * i); };
    phi::Kernel kernel(reinterpret_cast<void (*)(phi::KernelContext*)>(stub(index + 1)), stub(index));
    *kernel.mutable_args_def() = entry.cpu.args_def();
    for (auto& input : kernel.mutable_args_def()->input_defs()) {
      if (input.backend == phi::Backend::CPU) input.backend = backend;
      if (entry.half != DataType::UNDEFINED && input.dtype == DataType::FLOAT32) input.dtype = entry.half;
    }
    for (auto& output : kernel.mutable_args_def()->output_defs())
      if (output.backend == phi::Backend::CPU) output.backend = backend;
    all[name][key] = kernel;
  }
}
}  // namespace

// ---- Part 3: the collectives ---------------------------------------------------------------------------------------

namespace {
#include "fake_ccl.h"
}  // namespace

// ---- What Paddle and the tests call -----------------------------------------------------------------------------

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED uint64_t fake_gpu_host_to_device_copies() { return h2d; }
EXPORTED uint64_t fake_gpu_device_to_host_copies() { return d2h; }
EXPORTED uint64_t fake_gpu_synchronizations() { return synchronizations; }
EXPORTED uint64_t fake_gpu_collectives() { return fake_ccl::calls; }
EXPORTED uint64_t fake_gpu_bytes_sent() { return fake_ccl::bytes_sent; }
EXPORTED uint64_t fake_gpu_memory_used(int device) { return used[device % kMaxDevices]; }
EXPORTED void fake_gpu_set_memory_limit(uint64_t bytes) { limit = bytes; }

EXPORTED void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static std::string type = Environment("FAKE_GPU_NAME", "fake_gpu");
  params->device_type = const_cast<char*>(type.c_str());
  params->sub_device_type = const_cast<char*>("host");

  auto* device = params->interface;
  device->initialize = Nothing;
  device->finalize = Nothing;
  device->init_device = NothingOn;
  device->deinit_device = NothingOn;
  device->set_device = SetDevice;
  device->get_device = GetDevice;
  device->get_device_count = GetDeviceCount;
  device->get_device_list = GetDeviceList;
  device->create_stream = NewBox<C_Stream>;
  device->destroy_stream = DropBox<C_Stream>;
  device->query_stream = QueryBox<C_Stream>;
  device->stream_add_callback = StreamCallback;
  device->create_event = NewBox<C_Event>;
  device->destroy_event = DropBox<C_Event>;
  device->query_event = QueryBox<C_Event>;
  device->record_event = NothingOnEvent;
  device->stream_wait_event = NothingOnEvent;
  device->synchronize_device = SynchronizeDevice;
  device->synchronize_stream = Synchronize<C_Stream>;
  device->synchronize_event = Synchronize<C_Event>;
  device->host_memory_allocate = HostAllocate;
  device->host_memory_deallocate = HostFree;
  device->device_memory_allocate = DeviceAllocate;
  device->device_memory_deallocate = DeviceFree;
  device->device_memory_set = DeviceSet;
  device->device_memory_stats = MemoryStats;
  device->device_min_chunk_size = MinimumChunk;
  device->memory_copy_h2d = Copy<&h2d>;
  device->memory_copy_d2h = Copy<&d2h>;
  device->memory_copy_d2d = Copy<&d2d>;
  device->memory_copy_p2p = CopyAcross;
  device->async_memory_copy_h2d = CopyOnStream<&h2d>;
  device->async_memory_copy_d2h = CopyOnStream<&d2h>;
  device->async_memory_copy_d2d = CopyOnStream<&d2d>;
  device->async_memory_copy_p2p = CopyAcrossOnStream;
  fake_ccl::Fill(device);

  RegisterKernels(type.c_str());
}
