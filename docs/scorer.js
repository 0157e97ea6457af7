/* How the site's search orders what it finds: guides before the reference, and decisions last. */
"use strict";

var Scorer = {
    score: ([page, title, anchor, description, score, file, kind]) => {
        if (page.startsWith("decisions/")) return score - 40;
        if (kind === "object") return score;
        if (page.startsWith("api")) return score - 2;
        return score + ({ index: 8, contributing: -15, architecture: -10, performance: -6, format: -6 }[page] ?? 6);
    },
    objNameMatch: 11,
    objPartialMatch: 4,
    objPrio: { 0: 5, 1: 5, 2: -5 },
    objPrioDefault: 0,
    title: 15,
    partialTitle: 7,
    term: 5,
    partialTerm: 2,
};
