// Prints what TypeScript's parser makes of a JavaScript file, as JSON: `nodes`, the kind of each node of the
// tree and the text of each token; `comments`; and `errors`. Private names are numbered in the order in which
// they come.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const [typescript, file] = process.argv.slice(2);
const ts = createRequire(import.meta.url)(typescript);
const text = readFileSync(file, 'utf8');
const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true, ts.ScriptKind.JS);
const nodes = [];
const comments = new Map();
const privateNames = [];
let end = 0;

function walk(node) {
  if (ts.isJSDoc(node)) return;
  const children = node.getChildren(source);
  const kind = ts.SyntaxKind[node.kind];
  nodes.push(children.length ? `${kind} of ${children.filter((child) => !ts.isJSDoc(child)).length}` : kind);
  if (children.length) return children.forEach(walk);
  for (const ranges of [ts.getLeadingCommentRanges(text, end), ts.getTrailingCommentRanges(text, end)]) {
    for (const range of ranges ?? []) comments.set(range.pos, text.slice(range.pos, range.end));
  }
  const token = node.getText(source);
  if (!ts.isPrivateIdentifier(node)) {
    nodes.push(token);
  } else {
    if (!privateNames.includes(token)) privateNames.push(token);
    nodes.push(`#${privateNames.indexOf(token)}`);
  }
  end = node.end;
}

walk(source);
const errors = source.parseDiagnostics.map(({ messageText }) => messageText);
console.log(JSON.stringify({ nodes, comments: [...comments.values()], errors }));
