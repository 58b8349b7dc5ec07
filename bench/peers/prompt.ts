// What the peer is asked: tokens that are all over the vocabulary, the same in every run.

export function promptIds(count: number, vocabulary: number): number[] {
  return Array.from({ length: count }, (_, i) => (i * 7919 + 13) % vocabulary);
}
