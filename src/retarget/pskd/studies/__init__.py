"""The PS-KD studies, one folder each: plan, run, data, scores, analysis. ``retarget.pskd.study.plan`` chooses one."""
