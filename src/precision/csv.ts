// A diff as a table with the column names of Ascend's msprobe, for people whose scripts read those. Knows nothing of files.
import type { DiffReport } from "./diff.ts";
import type { Manifest } from "./reference.ts";

const COLUMNS = [
  "NPU Name",
  "Bench Name",
  "NPU Dtype",
  "Bench Dtype",
  "NPU Tensor Shape",
  "Bench Tensor Shape",
  "Cosine",
  "EucDist",
  "MaxAbsErr",
  "MaxRelativeErr",
  "MeanAbsErr",
  "MeanRelativeErr",
  "NMSE",
  "Isolated NMSE",
  "One Thousandth Err Ratio",
  "Five Thousandths Err Ratio",
  "NPU absmax",
  "Bench absmax",
  "Result",
  "Err_message",
] as const;

type Row = Record<(typeof COLUMNS)[number], string | number>;

/** Comma-separated with a header line; `NPU` is the device under test, `Bench` the reference. One row per tap. */
export function csv(report: DiffReport, manifest: Manifest): string {
  const rows = report.taps.map(({ key, shape, metrics, isolated, verdict, worst }): Row => {
    const { dtype } = manifest.tensors[key];
    const guilty = report.guilty.includes(key);
    return {
      "NPU Name": key,
      "Bench Name": key,
      "NPU Dtype": dtype,
      "Bench Dtype": dtype,
      "NPU Tensor Shape": `[${shape.join(", ")}]`,
      "Bench Tensor Shape": `[${manifest.tensors[key].shape.join(", ")}]`,
      Cosine: metrics.cosine,
      EucDist: metrics.distance,
      MaxAbsErr: metrics.maxAbs,
      MaxRelativeErr: metrics.maxRelative,
      MeanAbsErr: metrics.mae,
      MeanRelativeErr: metrics.mre,
      NMSE: metrics.nmse,
      "Isolated NMSE": isolated?.metrics.nmseUpdate ?? isolated?.metrics.nmse ?? "",
      "One Thousandth Err Ratio": metrics.withinThousandth,
      "Five Thousandths Err Ratio": metrics.withinFiveThousandths,
      "NPU absmax": metrics.absmax[0],
      "Bench absmax": metrics.absmax[1],
      Result: guilty ? "error" : verdict,
      Err_message: guilty ? `wrong by itself, worst at ${isolated?.worst ?? worst}` : "",
    };
  });
  const lines = [COLUMNS, ...rows.map((row) => COLUMNS.map((column) => row[column]))];
  return lines.map((line) => `${line.map(quoted).join(",")}\n`).join("");
}

function quoted(value: string | number): string {
  const text = String(value);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
