// Statistics outside their control limits, as the analyses report them.

import { apiUrl, getJson } from "./api.js";

const MAX_ANALYSES = 40; // analyses read
const reports = new Map(); // by analysis: they never change

const numeral = (value) => Number(value.toPrecision(3));

// Of each: time, network, variable, statistic, low and high limit, and a sentence.
function linesOf(analysis) {
  return (analysis.scores.control?.outside ?? []).filter(({ layer }) => layer === "all").map((line) => ({
    ...line, time: Date.parse(analysis.valid_time),
    text: `${line.network === "all" ? "all networks" : `${line.network}, ${line.variable.replaceAll("_", " ")}`}: `
      + `${line.statistic.replaceAll("_", " ")} ${numeral(line.value)}, limits ${numeral(line.low)} to ${numeral(line.high)} of ${line.cycles} cycles`,
  }));
}

// The newest analyses outside their limits; also how many there are, and the address that was asked.
export async function outsideLimits(flavour, from, to) {
  const url = apiUrl("v1/verification", {
    statistic: "outside_limits", layer: "all", flavour, valid_from: from.toISOString(), valid_to: to.toISOString(), limit: 5000,
  });
  const { items } = await getJson(url);
  const flagged = items.filter((row) => row.value > 0).map((row) => row.analysis_id);
  const lines = await Promise.all(flagged.slice(-MAX_ANALYSES).map(async (id) => {
    if (!reports.has(id)) {
      const analysis = await getJson(apiUrl(`v1/analyses/${encodeURIComponent(id)}`)).catch(() => null); // removed since
      if (analysis === null) return [];
      reports.set(id, linesOf(analysis));
    }
    return reports.get(id);
  }));
  return { url, analyses: flagged.length, lines: lines.flat() };
}
