// Numbers that the kernels and their host (backends/cpu) must agree on: op codes, where a program's fields are, how a
// control block and a thread's scratch are laid out. Plain constants, so that both languages read this one file.

// --- Op codes. The arguments of an op are those of its case in `program.ts`.
export const OP_EMBED = 1;
export const OP_LINEAR = 2;
export const OP_COLUMNS = 3;
export const OP_RMS_NORM = 4;
export const OP_ROPE = 5;
export const OP_KV_APPEND = 6;
export const OP_ATTENTION = 7;
export const OP_ATTENTION_PROBS = 8;
export const OP_GLU = 9;
export const OP_ADD = 10;
export const OP_SOFTCAP = 11;
export const OP_ROUTE = 12;
export const OP_GROUP = 13;
export const OP_LINEAR_EXPERTS = 14;
export const OP_COMBINE = 15;
export const OP_GATHER_ROWS = 16;
export const OP_ARGMAX = 17;
export const OP_ADVANCE = 18;
export const OP_ADD_NORM = 19;
export const OP_QKV_HEADS = 20;
export const OP_GATE_UP = 21;
export const OP_EXPERTS_UP = 22;
export const OP_EXPERTS_DOWN = 23;
export const OP_LINEAR_ARGMAX = 24;
export const OP_ARGMAX_TILES = 25;
export const OP_QUANTIZE = 26;
export const OP_PACK = 27;
export const OP_QUANTIZE_ROWS = 28;
export const OP_ATTENTION_MERGE = 29;

// --- Weight formats.
export const F32 = 0;
export const F16 = 1;
export const BF16 = 2;
export const INT8 = 3;
export const MXFP4 = 4;
/** INT8 with a scale in F16 for each 32 columns, as GGUF has it. */
export const Q8_0 = 5;
/** Of a product only: INT8 with one scale a row, times rows of x in 8 bits, see w8a8.ts. */
export const W8A8 = 6;
/** Four-bit integers less 8, with a scale in F16 for each 32 columns, as GGUF has them. */
export const Q4_0 = 7;
/** Of a product with one row of x only: MXFP4 and Q4_0 times records in bytes, where other products work in halves. */
export const MXFP4_BYTES = 8;
export const Q4_0_BYTES = 9;

// --- Activations.
export const SILU = 0;
export const GELU_TANH = 1;
export const SWIGLU_OAI = 2;

// --- A program: a header, then one record per op. Offsets in bytes.
export const PROGRAM_OPS = 0; // i32: how many
export const PROGRAM_STATE = 4; // pointer to i32 [ops, 16], zero between runs: tasks done of each op, and claimed of its regions
export const STATE_BYTES = 64;
/** See `claim` in threads.ts. */
export const MAX_REGIONS = 15;
/** A waiting thread reads so many bytes of the weights that it needs next into its cache: an eighth of 1 MiB, as cores have today. */
export const READ_AHEAD = 131072;
export const PROGRAM_HEADER = 64;
export const OP_BYTES = 128;
export const OP_CODE = 0;
export const OP_BARRIER = 4; // 1: all ops before this one must be done
export const OP_LIVE = 8; // pointer to i32 [1], the number of live rows; 0: all
export const OP_ROWS = 12; // i32: row capacity
export const OP_TIMES = 16; // i32: rows for each live row of the step, K behind a router
export const OP_AHEAD = 20; // pointer to the weight that this op, or else the next to read one, goes through in tiles; 0: none
export const OP_AHEAD_TILE = 24; // i32: bytes of one of its tiles
export const OP_AHEAD_TILES = 28; // i32
export const OP_ARGS = 32; // i32 or f32 [24]

// --- The control block, shared by all threads of a backend. One cache line for each word that many threads write.
export const CONTROL_START = 0; // i32: bumped to start a run
export const CONTROL_PROGRAM = 4; // pointer to the program that runs
export const CONTROL_STOP = 8; // i32: 1 asks the helpers to return
export const CONTROL_FAILED = 12; // i32: 1 once a thread died or did not answer in time
export const CONTROL_TIMEOUT_MS = 16; // i32: how long a thread waits for the others
export const CONTROL_SPINS = 20; // i32: how often it looks before it sleeps
export const CONTROL_SCRATCH = 24; // pointer to the threads' scratch
export const CONTROL_OPEN = 28; // i32: 1 while a run takes helpers
export const CONTROL_PARTS = 32; // i32: 8-bit parts of an activation in integer products, 1 … 3
export const CONTROL_WIDE = 36; // i32: 1 where the relaxed dot product takes its second operand as unsigned bytes
export const CONTROL_UNPACKED = 40; // i32: tiles with values that cannot be packed
export const CONTROL_PAIRED = 44; // i32: 1 where pairs of vectors share a register of 256 bits, see backends/cpu/module.ts
export const CONTROL_STREAMS = 48; // i32: how many tiles a thread reads in turn, times one row: 1 or STREAMS
export const CONTROL_FINISHED = 64; // i32: ops of this run that are done
export const CONTROL_INSIDE = 128; // i32: helpers that look at the program
export const CONTROL_SLEEPERS = 192; // i32: threads asleep until an op is done or a helper has left
export const CONTROL_IDLE = 256; // i32: helpers asleep between runs
export const CONTROL_WAKEUPS = 260; // i32: how often helpers woke up
/** Look-up constants that kernels load once per call: V8 rebuilds a v128 constant at each use. */
export const CONTROL_TABLES = 320;
export const TABLE_FP4 = 0; // f32 [16]: the FP4 (E2M1) values by code
export const TABLE_HIGH_HALF = 64; // u32 [4]: 0xffff0000
export const TABLE_NIBBLE = 80; // u8 [16]: 15
export const TABLE_F16_MASK = 96; // u32 [4]: 0x8fffe000, sign, exponent and mantissa of a half moved into an f32
export const TABLE_F16_SCALE = 112; // f32 [4]: 2^112, the difference of their exponent biases
export const TABLE_FP4_TWICE = 128; // i8 [16]: twice the FP4 values, whole numbers from −12 to 12
export const TABLE_FP4_BIASED = 144; // u8 [16]: 12 more
export const TABLE_Q4 = 160; // i8 [16]: −8 … 7, the values of Q4_0 by code
export const TABLE_Q4_BIASED = 176; // u8 [16]: 128 more
export const TABLE_SMALLEST_SCALE = 192; // f32 [4]: 2^−127, exponent 0 of a scale of MXFP4
export const TABLE_ROUND = 208; // f32: 1.5 · 2^23; adding it rounds to an integer, which stands in the low bits
export const TABLE_EXP = 212; // f32 [12]: see exp4
export const TABLE_POWERS = 260; // f32 [8]: see powers
export const TABLE_EXP64 = 292; // f64 [17]: EXP64
export const TABLE_BYTES = 428;
export const CONTROL_BYTES = 748;

// --- A KV cache descriptor: i32 words.
export const CACHE_DATA = 0; // pointer: segments [G, segments], each as in cache.ts
export const CACHE_SEGMENTS = 4;
export const CACHE_SEGMENT_BYTES = 8; // keys and values of one head
export const CACHE_VALUES = 12; // where in a segment its values begin
export const CACHE_TYPE = 16; // F32, F16 or INT8
export const CACHE_KV_HEADS = 20;
export const CACHE_HEAD_DIM = 24;
export const CACHE_WIDTH = 28; // channels of a head, padded to a multiple of 16
export const CACHE_PAGE_SIZE = 32; // positions per page; 0: a ring
export const CACHE_STRIDE = 36; // slots of a page or ring, a multiple of SEGMENT
export const CACHE_LIMIT = 40; // number of pages, or of sequences
export const CACHE_BYTES = 44;
/** Slots that lie together, and positions whose probabilities share a maximum. */
export const SEGMENT = 64;

// --- Products. TILE output rows are interleaved so that a SIMD lane is an output row; K is walked in blocks of BLOCK
// columns whose sums are added up second. Both fix the order of every sum, so they are part of the numbers.
export const TILE = 32;
export const BLOCK = 128;
/** Rows of x that share one decoded block of weights. */
export const ROW_BLOCK = 256;
/** One row of x waits for memory, which some machines read faster from several tiles in turn (backends/cpu/streams.ts). */
export const STREAMS = 4;
/** How much of a tile is read in one turn, 1 or 2 KiB: columns of floats and of INT8, and of 4-bit weights. */
export const STREAM_COLUMNS = 32;
export const STREAM_NIBBLE_COLUMNS = 64;

// --- Integer products. A record holds 32 activations: their scale (f32); what weights with 128 and with 12 added add to the
// sums of each part (i32 [3] each); the parts, highest first, in planes of 32 bytes. Where not wide there is nothing to add, and
// planes are 32 halves of up to two parts; for MXFP4_BYTES and Q4_0_BYTES they are bytes, too.
export const GROUP_COLUMNS = 32;
export const RECORD_INT8_SUMS = 4;
/** For MXFP4_BYTES and Q4_0_BYTES: −4 times the sums of columns 0 … 15, and of 16 … 31, of each of two parts (i16 [2, 2]). */
export const RECORD_HALF_SUMS = 4;
export const RECORD_FP4_SUMS = 16;
export const RECORD_PARTS = 32;

// --- A thread's scratch. Offsets in bytes.
export const SCRATCH_PANEL = 0; // a decoded block of weights: f32 [BLOCK, TILE], or INT8 blocks with their scales
export const SCRATCH_PANEL_BLOCKS = 14; // of 32 columns: 1152 bytes each
export const SCRATCH_TOTALS = 16384; // f32 [ROW_BLOCK, TILE]
export const SCRATCH_TOTALS_UP = 49152; // f32 [ROW_BLOCK, TILE]: the second product of gate and up
export const SCRATCH_ROWS = 81920; // pointers [ROW_BLOCK]: where each row of x is
export const SCRATCH_MISC = 82944; // route: taken experts; heads: one head
export const SCRATCH_TILES = 91392; // pointers [STREAMS]: the tiles of a product
export const SCRATCH_BLOCK_SUMS = 91408; // f32 [STREAMS, TILE]: of the current block of each
export const SCRATCH_BYTES = 98304;
export const SCRATCH_ATTENTION = 0; // the same bytes for all that attention keeps, see attention.ts
/** Attention: how many query rows a task has at most, and how many positions have a sum of their own. */
export const ATTENTION_ROWS = 8;
export const ATTENTION_CHUNK = 512;
export const PARTIAL_HEADER = 4; // f32 before the channels of a chunk's partial result
export const MAX_HEAD_DIM = 1024;
/** route: one byte of scratch per expert. */
export const MAX_EXPERTS = 8192;
