"use strict";
// What all pages share: unpacking what neurons.py packed, writing numbers, and sorting many of them.
const shared = (() => {
  async function inflate(base64) {
    const packed = Uint8Array.fromBase64
      ? Uint8Array.fromBase64(base64)
      : Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Four planes of bytes, the lowest first, become one word each.
  function words(bytes, offset, count) {
    const out = new Uint32Array(count);
    for (let plane = 0; plane < 4; plane++) {
      const at = offset + plane * count, shift = 8 * plane;
      for (let i = 0; i < count; i++) out[i] |= bytes[at + i] << shift;
    }
    return out;
  }

  // The columns that a block describes, by name, each of one number or `width` numbers per neuron: words, or bytes.
  async function columns(about, base64) {
    const bytes = await inflate(base64), data = {};
    let offset = 0;
    for (const column of about.columns) {
      const count = about.neurons * (column.width || 1);
      if (column.kind === "byte") {
        data[column.name] = bytes.subarray(offset, offset + count);
        offset += count;
        continue;
      }
      const raw = words(bytes, offset, count);
      offset += raw.length * 4;
      data[column.name] = column.kind === "float" ? new Float32Array(raw.buffer) : raw;
    }
    return data;
  }

  // The order that sorts values: a stable radix sort of the floats' bits, two passes over a million neurons.
  function sorted(values, turned) {
    const M = values.length, bits = new Uint32Array(M);
    if (values instanceof Float32Array) {
      const raw = new Uint32Array(values.buffer, values.byteOffset, M);
      for (let i = 0; i < M; i++) bits[i] = raw[i] & 0x80000000 ? ~raw[i] : raw[i] | 0x80000000;
    } else bits.set(values);
    if (turned) for (let i = 0; i < M; i++) bits[i] = ~bits[i];
    let order = Uint32Array.from({ length: M }, (_, m) => m), next = new Uint32Array(M);
    for (const shift of [0, 16]) {
      const start = new Uint32Array(65537);
      for (let i = 0; i < M; i++) start[((bits[i] >>> shift) & 0xffff) + 1]++;
      for (let d = 0; d < 65536; d++) start[d + 1] += start[d];
      for (let i = 0; i < M; i++) next[start[(bits[order[i]] >>> shift) & 0xffff]++] = order[i];
      order = next;
      next = new Uint32Array(M);
    }
    return order;
  }

  const percent = (p) => (p === 0 ? "0%" : number(100 * p) + "%");
  function number(x) {
    const size = Math.abs(x);
    if (x === 0) return "0";
    return size < 1e-4 || size >= 1e5 ? x.toExponential(2) : String(Number(x.toPrecision(3)));
  }

  return { inflate, columns, sorted, percent, number };
})();
