// Where measure.ts keeps its sums, for it and for the host: f64 each, at these byte offsets of a block of STATE_BYTES. The host
// sets them to 0 before the first rows of a tensor, and SMALL to what it is. Constants follow the first such block.

/** Of the reference alone: Σr², Σ|r|, max|r|. */
export const MAGNITUDE_ENERGY = 0;
export const MAGNITUDE_SUM = 8;
export const MAGNITUDE_MAX = 16;

/** In: the small-value domain, outside of which relative errors count. */
export const SMALL = 24;
/** Of both sides: Σ(a − r)², Σ|a − r|, Σa², Σa·r, max|a|. */
export const ERROR = 32;
export const TOTAL = 40;
export const OWN_ENERGY = 48;
export const DOT = 56;
export const OWN_MAX = 64;
/** max|a − r| and the index of the first element that has it. */
export const LARGEST = 72;
export const LARGEST_AT = 80;
/** Elements seen so far: the index of the next row's first. */
export const SEEN = 88;
/** Outside the small-value domain: how many, Σ|a − r| / |r|, its maximum, and how many are 1 ‰ or more and 5 ‰ or more. */
export const LARGE = 96;
export const RELATIVE = 104;
export const RELATIVE_MAX = 112;
export const OVER_THOUSANDTH = 120;
export const OVER_FIVE = 128;
/** Of `worst`: the largest ratio. */
export const WORST = 136;
/** Of a row of logits: Σ e^(r − max), Σ e^(r − max) d, Σ e^(r − max) (e^d − 1), max|d|; d = a − r. */
export const WEIGHT = 144;
export const SHIFT = 152;
export const GROWTH = 160;
export const SHIFT_MAX = 168;
/** Of what was added to an input: Σ((a − aIn) − (r − rIn))², Σ(r − rIn)². */
export const UPDATE_ERROR = 176;
export const UPDATE_ENERGY = 184;
export const STATE_BYTES = 192;

/** f64 [17]: `EXP64`, once and for all. */
export const EXP64 = STATE_BYTES;
export const CONSTANTS_BYTES = 136;
