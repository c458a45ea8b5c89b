// The data of the page, and how its packed arrays are read. See packing.py for the other side.
const report = JSON.parse(document.getElementById("data").textContent);

function codes(packed, bits) {
  const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
  if (bits === 8) return bytes;
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, index) => view.getUint16(2 * index, true));
}

// A table with the unpacked values and their strides; NaN stands for a missing one.
function table(shape, values) {
  return { shape, at: (...index) => values[index.reduce((sum, position, axis) => sum * shape[axis] + position, 0)] };
}

function unpackRatios(packed) {
  const { low, high, bits } = packed;
  const top = 2 ** bits - 1;
  const values = Float64Array.from(codes(packed, bits), (code) =>
    code === 0 ? 0 : 2 ** (low + ((code - 1) / (top - 1)) * (high - low)));
  return table(packed.shape, values);
}

function unpackLevels(packed) {
  const values = Float64Array.from(codes(packed, 16), (code) =>
    code === 65535 ? NaN : (code / 65534) * packed.largest);
  return table(packed.shape, values);
}

function unpackExperts(packed) {
  const values = Int32Array.from(codes(packed, packed.bits), (code) => (code === packed.none ? -1 : code));
  return table(packed.shape, values);
}

function unpackWeights(packed, shape) {
  return table(shape, Float64Array.from(codes(packed, 8), (code) => (code / 255) * packed.largest));
}

const range = (length) => Array.from({ length }, (_, index) => index);
const unique = (values) => [...new Set(values)];
const present = (value) => value !== null && value !== undefined && Number.isFinite(value);
