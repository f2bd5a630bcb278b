// Encoder of raw rows, as mmoe_jax/export/encoder.py: a row is an object from column to a text, a
// number, a list of texts, or null.

/** Returns encode(row) -> {ids: Int32Array, numeric: Float32Array}, which throws for a bad value. */
function createEncoder(encoder) {
  const SPACES = /^[ \t\r\n\v\f\xa0]+|[ \t\r\n\v\f\xa0]+$/g;
  const NUMBER = /^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$/;
  const TIME_PARTS = ["month", "day", "weekday", "hour", "minute"];
  const lookups = new Map(encoder.features.map((f) => [
    f.name, new Map(f.values.map((value, i) => [value, i + 1])),
  ]));

  const textOf = (value) =>
    value === null || value === undefined || Number.isNaN(value) ? "" : String(value).replace(SPACES, "");

  function columnText(column, value) {
    const text = textOf(value);
    return (encoder.missing[column] || []).includes(text) ? "" : text;
  }

  const MASK = (1n << 64n) - 1n;
  const rotate = (x, bits) => ((x << bits) | (x >> (64n - bits))) & MASK;

  function bucketHash(text) {  // SipHash-2-4 with pandas' key, then the last steps of SplitMix64.
    const content = new TextEncoder().encode(text);
    const word = (bytes) => bytes.reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
    const key = new TextEncoder().encode("0123456789123456");
    const k0 = word([...key.slice(0, 8)]), k1 = word([...key.slice(8)]);
    const v = [0x736f6d6570736575n ^ k0, 0x646f72616e646f6dn ^ k1,
               0x6c7967656e657261n ^ k0, 0x7465646279746573n ^ k1];
    const rounds = (count) => {
      for (let i = 0; i < count; i++) {
        v[0] = (v[0] + v[1]) & MASK;
        v[2] = (v[2] + v[3]) & MASK;
        v[1] = rotate(v[1], 13n) ^ v[0];
        v[3] = rotate(v[3], 16n) ^ v[2];
        v[0] = rotate(v[0], 32n);
        v[2] = (v[2] + v[1]) & MASK;
        v[0] = (v[0] + v[3]) & MASK;
        v[1] = rotate(v[1], 17n) ^ v[2];
        v[3] = rotate(v[3], 21n) ^ v[0];
        v[2] = rotate(v[2], 32n);
      }
    };
    const whole = Math.floor(content.length / 8) * 8;
    const last = [...content.slice(whole), 0, 0, 0, 0, 0, 0, 0, 0].slice(0, 7);
    last.push(content.length % 256);
    for (let at = 0; at <= whole; at += 8) {
      const next = word(at < whole ? [...content.slice(at, at + 8)] : last);
      v[3] ^= next;
      rounds(2);
      v[0] ^= next;
    }
    v[2] ^= 0xffn;
    rounds(4);
    let x = v[0] ^ v[1] ^ v[2] ^ v[3];
    x = ((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
    x = ((x ^ (x >> 27n)) * 0x94d049bb133111ebn) & MASK;
    return x ^ (x >> 31n);
  }

  function idOfText(feature, text) {
    if (!feature.buckets) return lookups.get(feature.name).get(text) || 0;
    return text === "" ? 0 : Number(bucketHash(text) % BigInt(feature.buckets)) + 1;
  }

  function timeOf(column, text) {
    if (/^-?[0-9]{5,}$/.test(text)) return new Date(Number(text) * 1000);
    const parts = text.match(
      /^(\d{4})(?:-(\d\d))?(?:-(\d\d))?(?:[T ](\d\d):?(\d\d)?(?::?(\d\d)(?:[.,]\d+)?)?)?(Z|[+-]\d\d:?\d\d)?$/);
    if (!parts) throw new Error(`${column}: '${text}' is not a time`);
    const [year, month, day, hour, minute, second] =
      parts.slice(1, 7).map((part, i) => part === undefined ? (i === 1 || i === 2 ? 1 : 0) : Number(part));
    let milliseconds = Date.UTC(year, month - 1, day, hour, minute, second);
    const zone = (parts[7] || "").match(/^([+-])(\d\d):?(\d\d)$/);
    if (zone) {
      milliseconds -= (zone[1] === "-" ? -1 : 1) * (Number(zone[2]) * 60 + Number(zone[3])) * 60000;
    }
    return new Date(milliseconds);
  }

  function idOfTime(feature, value) {
    const column = feature.sources[0], text = columnText(column, value);
    if (text === "") return 0;
    const time = timeOf(column, text);
    const part = {
      month: time.getUTCMonth() + 1, day: time.getUTCDate(), weekday: (time.getUTCDay() + 6) % 7,
      hour: time.getUTCHours(), minute: time.getUTCMinutes(),
    }[feature.kind];
    return lookups.get(feature.name).get(part) || 0;
  }

  function idsOfList(feature, value) {
    const column = feature.sources[0], missing = encoder.missing[column] || [];
    const text = Array.isArray(value) ? "" : textOf(value);
    const parts = Array.isArray(value) ? value
      : missing.includes(text) ? [] : text.split(feature.separator);
    const known = parts.map(textOf).filter((text) => text !== "")
      .map((text) => idOfText(feature, text)).filter((id) => id);
    return Array.from({length: feature.length}, (_, i) => known[i] || 0);
  }

  function numberOf(column, value) {
    const numeric = encoder.numeric.filter((n) => n.name === column);
    const features = encoder.features.filter((f) => f.sources.length === 1 && f.sources[0] === column);
    const text = columnText(column, value);
    if (text === "") {
      if ([...numeric, ...features].some((item) => item.missing)) return NaN;
      throw new Error(`${column} must not be missing: no row of training had a missing value here`);
    }
    const isLog = numeric.some((n) => n.transform === "log1p") || features.some((f) => f.kind === "log_int");
    const number = NUMBER.test(text) ? Number(text) : NaN;
    if (!(Math.abs(number) <= 1e30) || (isLog && number < 0)) {
      throw new Error(`${column}: '${text}' is not a number${isLog ? " of at least 0" : ""}`);
    }
    return number;
  }

  function idOfNumber(feature, x) {
    if (feature.kind === "log_int") return lookups.get(feature.name).get(Math.floor(Math.log1p(x))) || 0;
    if (Number.isNaN(x)) return feature.missing ? feature.values.length + 1 : 0;
    let id = 0;
    while (id < feature.values.length && feature.values[id] <= x) id++;
    return id;
  }

  function interpolate(x, points) {  // The share of rows below x; equal points have their middle.
    const distinct = [...new Set(points)];
    const shares = distinct.map((p) => {
      const first = points.indexOf(p);
      return (first + (points.lastIndexOf(p) - first) / 2) / (points.length - 1);
    });
    if (x <= distinct[0]) return shares[0];
    for (let i = 1; i < distinct.length; i++) {
      if (x <= distinct[i]) {
        const part = (x - distinct[i - 1]) / (distinct[i] - distinct[i - 1]);
        return shares[i - 1] + part * (shares[i] - shares[i - 1]);
      }
    }
    return shares[shares.length - 1];
  }

  function encode(row) {
    const ids = new Map();
    for (const feature of encoder.features) {
      const value = row[feature.sources[0]];
      if (feature.kind === "cross") {
        const [first, second] = feature.sources;
        const size = encoder.features.find((f) => f.name === second).size;
        ids.set(feature.name, [lookups.get(feature.name).get(ids.get(first)[0] * size + ids.get(second)[0]) || 0]);
      } else if (feature.kind === "bins" || feature.kind === "log_int") {
        ids.set(feature.name, [idOfNumber(feature, numberOf(feature.sources[0], value))]);
      } else if (feature.kind === "list") {
        ids.set(feature.name, idsOfList(feature, value));
      } else if (TIME_PARTS.includes(feature.kind)) {
        ids.set(feature.name, [idOfTime(feature, value)]);
      } else {
        ids.set(feature.name, [idOfText(feature, columnText(feature.sources[0], value))]);
      }
    }
    const raw = encoder.numeric.map((n) => numberOf(n.name, row[n.name]));
    const standard = encoder.numeric.map((n, d) => {
      if (Number.isNaN(raw[d])) return 0;
      const x = n.transform === "log1p" ? Math.log1p(raw[d])
        : n.transform === "quantile" ? interpolate(raw[d], n.points) : raw[d];
      return (x - n.mean) / n.std;
    });
    const marks = encoder.numeric.flatMap((n, d) => n.missing ? [Number.isNaN(raw[d]) ? 1 : 0] : []);
    const pieces = encoder.numeric.flatMap((n, d) => n.edges.slice(1).map((end, i) => {
      const share = (raw[d] - n.edges[i]) / (end - n.edges[i]);
      return Number.isNaN(share) ? 0 : Math.min(1, Math.max(0, share));
    }));
    return {ids: Int32Array.from([...ids.values()].flat()), numeric: Float32Array.from([...standard, ...marks, ...pieces])};
  }

  return encode;
}
