import { openPair } from "./rig.ts";
import { referenceCases } from "../models/references.ts";
import { diff } from "../../src/precision/diff.ts";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
for (const c of referenceCases()) for (const b of ["cpu1","cpu2","reference"]) {
  const t=performance.now();
  await using p = await openPair(c, b==="reference"? createReferenceBackend() : await createCpuBackend({threads: b==="cpu1"?1:2}));
  const r = await diff(p.runner, p.reference, { samples: p.samples });
  const worst = r.taps.filter(t=>t.isolated&&t.isolated.gate.metric.startsWith("nmse")).map(t=>[(t.isolated!.metrics.nmseUpdate??t.isolated!.metrics.nmse)/t.isolated!.gate.fail, t.key] as const).sort((a,b)=>b[0]-a[0])[0];
  console.log(r.verdict, c.name, b, r.reason??"", r.guilty.length, worst?.[0].toExponential(1), worst?.[1], r.taps.filter(t=>t.verdict==="warn").length, (performance.now()-t).toFixed(0));
}
