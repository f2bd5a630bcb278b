// Model as a list of operations on arrays (operations.py): {shape, data}, data in row-major order.

/** Returns forward({ids, numeric}) -> {logits: numbers, gates: {shape, data} or null}. */
function createModel(program) {
  const product = (shape) => shape.reduce((a, b) => a * b, 1);

  function stridesOf(shape) {
    const strides = new Array(shape.length);
    let step = 1;
    for (let i = shape.length - 1; i >= 0; i--) {
      strides[i] = step;
      step *= shape[i];
    }
    return strides;
  }

  // Calls visit(position in the result, index of it) for every element of a shape.
  function forEach(shape, visit) {
    const index = new Array(shape.length).fill(0), size = product(shape);
    for (let position = 0; position < size; position++) {
      visit(position, index);
      for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
    }
  }

  function erf(x) {  // Series for small x, continued fraction for large ones; error below 1e-12.
    const a = Math.abs(x);
    if (a > 6) return Math.sign(x);
    if (a < 3) {
      let term = x, sum = x;
      for (let n = 1; Math.abs(term) > 1e-17 && n < 200; n++) {
        term *= -x * x / n;
        sum += term / (2 * n + 1);
      }
      return 2 / Math.sqrt(Math.PI) * sum;
    }
    let fraction = 0;
    for (let n = 60; n > 0; n--) fraction = n / 2 / (a + fraction);
    return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + fraction));
  }

  const UNARY = {
    neg: (a) => -a, abs: Math.abs, sign: Math.sign, exp: Math.exp, exp2: (a) => 2 ** a, log: Math.log,
    log1p: Math.log1p, logistic: (a) => 1 / (1 + Math.exp(-a)), tanh: Math.tanh, sqrt: Math.sqrt,
    rsqrt: (a) => 1 / Math.sqrt(a), square: (a) => a * a, erf, stop_gradient: (a) => a, copy: (a) => a,
    is_finite: (a) => Number.isFinite(a) ? 1 : 0,
  };
  const BINARY = {
    add: (a, b) => a + b, sub: (a, b) => a - b, max: Math.max, min: Math.min, rem: (a, b) => a % b,
    pow: Math.pow, eq: (a, b) => +(a === b), ne: (a, b) => +(a !== b), lt: (a, b) => +(a < b),
    le: (a, b) => +(a <= b), gt: (a, b) => +(a > b), ge: (a, b) => +(a >= b), and: (a, b) => a & b,
    or: (a, b) => a | b, xor: (a, b) => a ^ b, shift_right_logical: (a, b) => a >>> b,
  };
  const REDUCTIONS = {
    reduce_sum: [0, (a, b) => a + b], reduce_prod: [1, (a, b) => a * b],
    reduce_max: [-Infinity, Math.max], reduce_min: [Infinity, Math.min],
  };
  const SAME_ORDER = ["reshape", "squeeze", "expand_dims"];

  function newData(step) {
    const size = product(step.shape);
    return step.type === "f" ? new Float32Array(size)
      : step.type === "u" ? new Uint32Array(size) : new Int32Array(size);
  }

  function dot(step, [a, b]) {
    const free = (x, used) => x.shape.map((_, i) => i).filter((i) => !used.includes(i));
    const freeA = free(a, [...step.left, ...step.leftBatch]), freeB = free(b, [...step.right, ...step.rightBatch]);
    const stridesA = stridesOf(a.shape), stridesB = stridesOf(b.shape);
    const stepsA = step.left.map((i) => stridesA[i]), stepsB = step.right.map((i) => stridesB[i]);
    const inner = step.left.map((i) => a.shape[i]);
    const places = [];  // Offsets of the summed elements in both operands.
    forEach(inner, (_, index) => places.push([
      index.reduce((sum, v, i) => sum + v * stepsA[i], 0), index.reduce((sum, v, i) => sum + v * stepsB[i], 0),
    ]));
    const batch = step.leftBatch.length, out = newData(step);
    forEach(step.shape, (position, index) => {
      let atA = 0, atB = 0, sum = 0;
      for (let i = 0; i < batch; i++) {
        atA += index[i] * stridesA[step.leftBatch[i]];
        atB += index[i] * stridesB[step.rightBatch[i]];
      }
      freeA.forEach((axis, i) => { atA += index[batch + i] * stridesA[axis]; });
      freeB.forEach((axis, i) => { atB += index[batch + freeA.length + i] * stridesB[axis]; });
      for (const [offsetA, offsetB] of places) sum += a.data[atA + offsetA] * b.data[atB + offsetB];
      out[position] = sum;
    });
    return out;
  }

  function gather(step, [operand, indices]) {
    const out = newData(step), strides = stridesOf(operand.shape), width = step.start.length;
    const batchAxes = step.shape.map((_, i) => i).filter((i) => !step.offset.includes(i));
    const kept = operand.shape.map((_, i) => i).filter((i) => !step.collapsed.includes(i));
    const batchStrides = stridesOf(indices.shape.slice(0, -1));
    forEach(step.shape, (position, index) => {
      const row = batchAxes.reduce((sum, axis, i) => sum + index[axis] * batchStrides[i], 0);
      let at = 0;
      step.start.forEach((axis, i) => {
        const start = indices.data[row * width + i];
        at += Math.min(Math.max(start, 0), operand.shape[axis] - step.sizes[axis]) * strides[axis];
      });
      step.offset.forEach((axis, i) => { at += index[axis] * strides[kept[i]]; });
      out[position] = operand.data[at];
    });
    return out;
  }

  // Copies elements by a function from the result's index to a position in the operand.
  function pick(step, operand, positionOf) {
    const out = newData(step);
    forEach(step.shape, (position, index) => { out[position] = operand.data[positionOf(index)]; });
    return out;
  }

  function reduce(step, operand) {
    const [start, combine] = REDUCTIONS[step.op];
    const sums = new Array(product(step.shape)).fill(start), strides = stridesOf(step.shape);
    const kept = operand.shape.map((_, i) => i).filter((i) => !step.axes.includes(i));
    forEach(operand.shape, (position, index) => {
      const at = kept.reduce((sum, axis, i) => sum + index[axis] * strides[i], 0);
      sums[at] = combine(sums[at], operand.data[position]);
    });
    const out = newData(step);
    out.set(sums);
    return out;
  }

  function join(step, operands) {
    const out = newData(step), strides = stridesOf(step.shape);
    let start = 0;
    for (const operand of operands) {
      forEach(operand.shape, (position, index) => {
        const at = index.reduce((sum, v, i) => sum + (i === step.axis ? v + start : v) * strides[i], 0);
        out[at] = operand.data[position];
      });
      start += operand.shape[step.axis];
    }
    return out;
  }

  function argmax(step, operand) {
    const best = new Map(), strides = stridesOf(step.shape), axis = step.axes[0], out = newData(step);
    forEach(operand.shape, (position, index) => {
      const at = index.filter((_, i) => i !== axis).reduce((sum, v, i) => sum + v * strides[i], 0);
      if (!best.has(at) || operand.data[position] > best.get(at)) {
        best.set(at, operand.data[position]);
        out[at] = index[axis];
      }
    });
    return out;
  }

  // Repeats an operand along axes of size 1, which operations on elements allow.
  function expand(operand, shape) {
    if (operand.data.length === 1 || operand.data.length === product(shape)) return operand;
    const strides = stridesOf(operand.shape).map((step, i) => operand.shape[i] === 1 ? 0 : step);
    const data = new operand.data.constructor(product(shape));
    forEach(shape, (position, index) => {
      data[position] = operand.data[index.reduce((sum, v, i) => sum + v * strides[i], 0)];
    });
    return {shape, data};
  }

  function elementwise(step, operands) {
    const out = newData(step);
    const [a, b, c] = operands.map((operand) => {
      const {data} = expand(operand, step.shape);
      return data.length === 1 ? () => data[0] : (i) => data[i];
    });
    const isInteger = step.type !== "f";
    let at;
    if (step.op in UNARY) at = (i) => UNARY[step.op](a(i));
    else if (step.op in BINARY) at = (i) => BINARY[step.op](a(i), b(i));
    else if (step.op === "mul") at = isInteger ? (i) => Math.imul(a(i), b(i)) : (i) => a(i) * b(i);
    else if (step.op === "div") at = isInteger ? (i) => Math.trunc(a(i) / b(i)) : (i) => a(i) / b(i);
    else if (step.op === "integer_pow") at = (i) => a(i) ** step.power;
    else if (step.op === "not") at = step.type === "b" ? (i) => 1 - a(i) : (i) => ~a(i);
    else if (step.op === "clamp") at = (i) => Math.min(Math.max(b(i), a(i)), c(i));
    else if (step.op === "select_n") at = (i) => a(i) ? c(i) : b(i);
    else if (step.op === "convert_element_type") at = step.type === "b" ? (i) => +(a(i) !== 0) : a;
    else throw new Error(`unknown operation ${step.op}`);
    for (let i = 0; i < out.length; i++) out[i] = at(i);
    return out;
  }

  function compute(step, operands) {
    const [first] = operands;
    if (SAME_ORDER.includes(step.op)) return first.data;
    if (step.op === "dot_general") return dot(step, operands);
    if (step.op === "gather") return gather(step, operands);
    if (step.op in REDUCTIONS) return reduce(step, first);
    if (step.op === "concatenate") return join(step, operands);
    if (step.op === "stack") {
      const widen = ({shape, data}) => ({shape: shape.toSpliced(step.axis, 0, 1), data});
      return join(step, operands.map(widen));
    }
    if (step.op === "argmax") return argmax(step, first);
    const strides = first ? stridesOf(first.shape) : [];
    if (step.op === "transpose") {
      return pick(step, first, (index) => index.reduce((sum, v, i) => sum + v * strides[step.axes[i]], 0));
    }
    if (step.op === "broadcast_in_dim") {
      return pick(step, first, (index) => step.axes.reduce(
        (sum, axis, i) => sum + (first.shape[i] === 1 ? 0 : index[axis] * strides[i]), 0));
    }
    if (step.op === "slice") {
      const every = step.strides || step.start.map(() => 1);
      return pick(step, first, (index) => index.reduce(
        (sum, v, i) => sum + (step.start[i] + v * every[i]) * strides[i], 0));
    }
    if (step.op === "iota") {
      const out = newData(step);
      forEach(step.shape, (position, index) => { out[position] = index[step.axis]; });
      return out;
    }
    return elementwise(step, operands);
  }

  const constants = (() => {
    const text = atob(program.numbers), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    let start = 0;
    return program.constants.map(({shape, type, size}) => {
      const view = new DataView(bytes.buffer, start, size * 4);
      const numbers = type === "f" ? new Float32Array(size) : new Int32Array(size);
      for (let i = 0; i < size; i++) numbers[i] = type === "f" ? view.getFloat32(4 * i, true) : view.getInt32(4 * i, true);
      start += size * 4;
      return {shape, data: numbers};
    });
  })();

  function forward({ids, numeric}) {
    const values = [{shape: [1, ids.length], data: ids}, {shape: [1, numeric.length], data: numeric}, ...constants];
    for (const step of program.steps) {
      values.push({shape: step.shape, data: compute(step, step.of.map((i) => values[i]))});
    }
    return {logits: values[program.logits].data, gates: program.gates === null ? null : values[program.gates]};
  }

  return forward;
}
