// The data of the page, and how its packed arrays are read. See packing.py for the other side.
const report = JSON.parse(document.getElementById("data").textContent);

function codes(packed, bits) {
  const text = atob(packed.data);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  if (bits === 8) return bytes;
  const values = new Uint16Array(bytes.length / 2);
  for (let index = 0; index < values.length; index += 1) values[index] = bytes[2 * index] | (bytes[2 * index + 1] << 8);
  return values;
}

// A table whose codes are read when they are asked for: a large page opens before it has read all its numbers.
function table(shape, packed, bits, decode) {
  let values = null;
  return {
    shape,
    at: (...index) => {
      values ??= codes(packed, bits);
      let position = 0;
      for (let axis = 0; axis < shape.length; axis += 1) position = position * shape[axis] + index[axis];
      return decode(values[position]);
    },
  };
}

function unpackRatios(packed) {
  const { low, high, bits } = packed;
  const step = (high - low) / (2 ** bits - 2);
  return table(packed.shape, packed, bits, (code) => (code === 0 ? 0 : 2 ** (low + (code - 1) * step)));
}

function unpackLevels(packed) {
  return table(packed.shape, packed, 16, (code) => (code === 65535 ? NaN : (code / 65534) * packed.largest));
}

function unpackExperts(packed) {
  return table(packed.shape, packed, packed.bits, (code) => (code === packed.none ? -1 : code));
}

function unpackWeights(packed, shape) {
  return table(shape, packed, 8, (code) => (code / 255) * packed.largest);
}

const range = (length) => Array.from({ length }, (_, index) => index);
const unique = (values) => [...new Set(values)];
const present = (value) => value !== null && value !== undefined && Number.isFinite(value);
