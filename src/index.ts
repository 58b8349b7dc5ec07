// What users import.
export { Chat } from "./chat.ts";
export { type DeviceInfo, listDevices } from "./devices.ts";
export {
  ConfigError,
  DeviceError,
  DisposedError,
  type ErrorDetails,
  InsufficientMemoryError,
  InternalError,
  ModelFileError,
  OptionError,
  UnsupportedModelError,
  VernierError,
} from "./errors.ts";
export {
  type Choice,
  type ChoiceEnd,
  type FinishReason,
  Generation,
  type GenerationResult,
  type Piece,
  type Timings,
  type TokenInfo,
  type TokenLogprob,
  type ToolCall,
  type Usage,
} from "./generation.ts";
export type { Logits, ModelInfo } from "./host.ts";
export type { MemoryNeed, ModelSummary, TensorSummary } from "./inspect.ts";
export { inspect, load, Model, type ModelSource } from "./language-model.ts";
export type {
  ChatOptions,
  DeviceName,
  GenerateOptions,
  LoadOptions,
  LoadProgress,
  Logger,
  LogitsProcessor,
  Prompt,
  SamplingOptions,
} from "./options.ts";
export type { ChatMessage } from "./text/messages.ts";
