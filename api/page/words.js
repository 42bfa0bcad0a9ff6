// Numbers, times and sizes as people read them. null and undefined: nothing.

const significant = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function number(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-4) return value.toExponential(2);
  return size >= 1e4 ? whole.format(value) : significant.format(value);
}

export function integer(value) {
  return value === null || value === undefined ? "" : whole.format(value);
}

export function percent(value) {
  return value === null || value === undefined ? "" : `${value.toFixed(1)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const left = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(left / 86400), Math.floor(left / 3600) % 24, Math.floor(left / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes) return `${minutes} min ${left % 60} s`;
  return `${left} s`;
}

export function bytes(count) {
  if (count === null || count === undefined) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = count > 0 ? Math.min(units.length - 1, Math.floor(Math.log10(count) / 3)) : 0;
  return `${significant.format(count / 1000 ** power)} ${units[power]}`;
}

// Of Unix time in seconds.
export function time(seconds) {
  return seconds ? new Date(seconds * 1000).toLocaleString() : "";
}

export function ago(seconds) {
  return `${duration(Date.now() / 1000 - seconds)} ago`;
}

// [0, 1, 2, 5] -> "0-2, 5"
export function ranges(indices) {
  const spans = [];
  for (const index of indices) {
    const last = spans.at(-1);
    if (last && last[1] === index - 1) last[1] = index;
    else spans.push([index, index]);
  }
  return spans.map(([first, last]) => (first === last ? first : `${first}-${last}`)).join(", ");
}
