// The members of an ensemble in a CoverageJSON document of EDR.

export const MEMBER = "var(--soft)", MEAN = "var(--busy)"; // colours of their lines

// Members by number, each with its values by name (without the suffix) along one axis.
export function readMembers(document, along, ending) {
  const members = new Map();
  for (const coverage of document.coverages ?? [document]) {
    const number = coverage.realization ?? -1;
    const places = coverage.domain.axes[along]?.values ?? [];
    const member = members.get(number) ?? { places, values: {} };
    for (const [name, range] of Object.entries(coverage.ranges)) member.values[name.slice(0, name.length - ending.length)] = known(range.values);
    members.set(number, member);
  }
  return [...members.entries()].sort((a, b) => a[0] - b[0]).map(([, member]) => member);
}

// What is missing is null in CoverageJSON, and would count as 0 in a formula.
const known = (values) => values.map((value) => value ?? NaN);
export const finite = (value) => Number.isFinite(value);
export const mean = (values) => {
  const given = values.filter(finite);
  return given.reduce((sum, value) => sum + value, 0) / given.length;
};
