'use strict';
/* The transcript browser. Whatever a model wrote reaches the page as text nodes alone. */
(() => {
  const ROW = 60; // pixels of a row of the list, as in the style
  const SPARE = 6; // rows drawn beyond what is in sight
  const SHOWN = 6000; // characters of a text shown at first
  const WORDS = {bad: '▲ bad answer', good: '✓ good answer', none: '– no verdict'};
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}]/gu;
  const get = id => document.getElementById(id);
  const list = get('list'), story = get('story');
  const filters = ['kind', 'iteration', 'domain', 'strategy', 'category', 'verdict'];

  const entries = []; // {record, text}
  const byId = new Map(); // of an attack or item, and of its answers, critiques and pair
  let shown = [], selected = null, loaded = false;

  // ---- text ---------------------------------------------------------------------------------

  /** Control, format and bidirectional characters by their number. */
  const visible = text => String(text).replace(HIDDEN, sign => sign === '\n' || sign === '\t' ? sign
    : `⟦U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}⟧`);

  /** An element; strings among its children become text. */
  function make(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children.filter(child => child !== null).map(child => child instanceof Node ? child : visible(child)));
    return made;
  }

  /** What someone wrote, with the words that a critique quotes marked; the end of a long text on demand. */
  function said(text, span, kind) {
    if (text === null) return make('p', {class: 'quiet'}, 'no text');
    const box = make('div', {class: kind ? `said is-${kind}` : 'said'});
    const fill = whole => {
      const part = whole ? text : text.slice(0, SHOWN);
      const at = span ? part.indexOf(span) : -1;
      box.replaceChildren(...(at < 0 ? [visible(part)] : [
        visible(part.slice(0, at)), make('mark', {}, span), visible(part.slice(at + span.length))]));
      if (part.length < text.length) {
        const more = make('button', {type: 'button'}, `Show all ${text.length.toLocaleString('en')} characters`);
        more.addEventListener('click', () => fill(true));
        box.append('… ', more);
      }
    };
    fill(false);
    return box;
  }

  const figure = value => value === null || value === undefined ? 'null' : value.toFixed(2);
  const iterationName = number => Number(number) === 0 ? 'baseline' : `iteration ${number}`;
  const facts = parts => parts.filter(Boolean).join(' · ');

  // ---- stories ------------------------------------------------------------------------------

  function attackStory(record) {
    const harm = {true: 'harmful', false: 'harmless', null: 'unclear whether harmful'}[record.harmful];
    const parts = [
      make('h3', {}, record.id),
      make('p', {class: 'quiet'}, facts([iterationName(record.iteration), record.domain, record.category || 'no category',
        record.strategy, harm, `written by ${record.model}`])),
      verdictLine(Object.values(record.verdicts)[0]),
      make('h4', {}, `Seed ${record.seed.id}`),
      record.seed.text === null ? make('p', {class: 'quiet'}, 'Its text is not at hand on the machine that made this page.')
        : said(record.seed.text),
    ];
    if (record.parent) {
      const link = make('a', {href: `#${encodeURIComponent(record.parent.id)}`}, record.parent.id);
      const then = record.parent.verdict ? ` (then ${WORDS[record.parent.verdict]})` : '';
      parts.push(make('p', {}, 'Made from ', link, then));
    }
    for (const turn of record.turns) parts.push(make('h4', {}, `Attack, ${turn.role}`), said(turn.text));
    if (record.query) parts.push(make('h4', {}, 'What is asked for, in plain words'), said(record.query));
    if (record.options) parts.push(options(record));
    if (record.opener) parts.push(make('h4', {}, 'Words put into the answer’s mouth'), said(record.opener));
    for (const answer of record.answers) parts.push(...answerStory(answer));
    if (!record.answers.length) parts.push(make('p', {class: 'quiet'}, 'Not answered yet.'));
    parts.push(make('h4', {}, 'Pair'), make('p', {}, record.pair
      ? `${record.pair.id}: chosen over rejected by ${figure(record.pair.margin)}` : 'No pair was made of it.'));
    parts.push(make('h4', {}, 'Every policy’s answer, by a judge that is not the critic'));
    if (!record.judged.length) parts.push(make('p', {class: 'quiet'}, 'Not asked: alignloop grid does.'));
    for (const row of record.judged) parts.push(make('p', {}, `policy ${row.policy}: ${scores(row.scores)}`), said(row.text));
    return parts;
  }

  function answerStory(answer) {
    const name = answer.origin === 'revision' ? 'Revision' : 'Answer';
    const parts = [make('h4', {}, facts([name, answer.part]))];
    parts.push(answer.text === null ? make('p', {class: 'quiet'}, `no text: ${answer.error || 'no reason given'}`)
      : said(answer.text, answer.critique && answer.critique.span, answer.part));
    if (answer.finish === 'length') parts.push(make('p', {class: 'quiet'}, `cut off after ${answer.tokens} tokens`));
    const critique = answer.critique;
    if (!critique) return parts;
    const inside = Object.entries(critique.parts || {}).map(([part, value]) => `${part} ${figure(value)}`).join(', ');
    parts.push(make('p', {}, make('b', {}, 'Critique '), facts([`harm ${figure(critique.harm)}`,
      `quality ${figure(critique.quality)}`, critique.null_reason, inside, critique.principle, critique.critic])));
    if (critique.rationale) parts.push(said(critique.rationale));
    if (critique.span && (answer.text === null || !answer.text.includes(critique.span))) {
      parts.push(make('p', {class: 'quiet'}, 'It quotes what the answer does not say word for word:'), said(critique.span));
    }
    return parts;
  }

  function itemStory(record) {
    const numbers = Object.keys(record.verdicts).map(Number).sort((a, b) => a - b);
    const parts = [make('h3', {}, record.id), make('p', {class: 'quiet'}, facts(['held-out item', record.domain, record.category]))];
    const chosen = get('iteration').value;
    const at = chosen === '' ? numbers.length - 1 : Math.max(0, numbers.indexOf(Number(chosen)));
    const sides = [
      {name: 'Before', number: chosen === '' ? numbers[0] : numbers[Math.max(0, at - 1)]},
      {name: 'After', number: numbers[at]},
    ];
    const body = make('div', {});
    const fill = () => body.replaceChildren(...record.requests.flatMap(request => [
      make('h4', {}, 'Request'), said(request.prompt), request.options ? options(request) : null,
      make('div', {class: 'sides'}, ...sides.map(side => make('section', {'aria-label': side.name}, ...sideStory(record, request, side)))),
    ].filter(Boolean)));
    for (const side of sides) {
      const choice = make('select', {}, ...numbers.map(number => make('option', {value: number}, iterationName(number))));
      choice.value = side.number;
      choice.addEventListener('change', () => { side.number = Number(choice.value); fill(); });
      side.control = make('label', {class: 'quiet'}, `${side.name} `, choice);
    }
    fill();
    return [...parts, make('div', {class: 'sides'}, ...sides.map(side => side.control)), body];
  }

  function sideStory(record, request, side) {
    const answers = request.answers[side.number] || [];
    return [make('h4', {}, iterationName(side.number)), verdictLine(record.verdicts[side.number]),
      ...answers.flatMap(answer => [said(answer.text), make('p', {class: 'quiet'}, scores(answer.scores))])];
  }

  const scores = rows => rows.map(row => `${row.metric} ${figure(row.score)}${row.reason ? ` (${row.reason})` : ''} by ${row.judge}`).join('; ');
  const verdictLine = verdict => make('p', {class: verdict}, WORDS[verdict] || WORDS.none);
  const options = asked => make('ol', {}, ...asked.options.map((text, place) => make('li', {}, place === asked.gold ? `${text} (right)` : text)));

  // ---- the list -----------------------------------------------------------------------------

  /** The verdict in the iteration that is looked at, else in the last. */
  function verdictOf(record, iteration) {
    const verdicts = record.verdicts;
    return iteration === '' ? verdicts[Math.max(...Object.keys(verdicts))] : verdicts[iteration];
  }

  function matcher() {
    const wanted = Object.fromEntries(filters.map(name => [name, get(name).value]));
    const words = get('search').value.toLowerCase().split(/\s+/).filter(Boolean);
    const changed = get('changed').checked;
    return ({record, text}) => {
      const at = wanted.iteration;
      return (at === '' || at in record.verdicts)
        && ['kind', 'domain', 'strategy', 'category'].every(name => wanted[name] === '' || wanted[name] === record[name])
        && (wanted.verdict === '' || wanted.verdict === verdictOf(record, at))
        && (!changed || (at === '' ? record.changed.length > 0 : record.changed.includes(Number(at))))
        && words.every(word => text.includes(word));
    };
  }

  function refresh() {
    shown = entries.filter(matcher());
    const total = entries.length.toLocaleString('en');
    get('count').textContent = `${shown.length.toLocaleString('en')} of ${total}${loaded ? '' : ', reading on …'}`;
    list.hidden = shown.length === 0;
    draw(); // before scrolling: the list must be as tall as what it holds
    centre();
  }

  /** Brings the selected row into sight, else the first. */
  function centre() {
    const place = shown.findIndex(entry => entry.record === selected);
    list.scrollTop = place < 0 ? 0 : place * ROW - list.clientHeight / 2;
    draw();
  }

  /** Draws the rows in sight and no others. */
  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    const rows = [];
    for (let place = first; place < last; place += 1) rows.push(option(shown[place].record, place));
    const end = make('div', {role: 'presentation', class: 'end'}); // as tall as all rows together
    end.style.height = `${shown.length * ROW}px`;
    list.replaceChildren(...rows, end);
    const active = rows.find(row => row.getAttribute('aria-selected') === 'true');
    if (active) list.setAttribute('aria-activedescendant', active.id); else list.removeAttribute('aria-activedescendant');
  }

  function option(record, place) {
    const verdict = verdictOf(record, get('iteration').value);
    const changed = record.changed.length ? 'changed' : '';
    const where = record.kind === 'attack' ? iterationName(record.iteration) : 'held-out';
    const row = make('div', {
      id: `row-${place}`, class: 'option', role: 'option', 'aria-selected': String(record === selected),
      'aria-setsize': shown.length, 'aria-posinset': place + 1,
    }, make('span', {}, record.title.replace(/\s+/g, ' ') || record.id),
    make('span', {class: 'facts'}, make('span', {class: verdict}, WORDS[verdict]), ` · ${facts([where, record.domain, record.strategy, record.category, changed])}`));
    row.style.top = `${place * ROW}px`;
    row.addEventListener('click', () => { choose(record); read(); });
    return row;
  }

  /** Shows a record; the address then leads to it. */
  function choose(record) {
    history.replaceState(null, '', `#${encodeURIComponent(record.id)}`);
    tell(record);
    draw();
  }

  function tell(record) {
    selected = record;
    const back = make('a', {href: '#transcripts', class: 'narrow'}, 'Back to the list');
    story.replaceChildren(...(record.kind === 'attack' ? attackStory(record) : itemStory(record)), back);
    story.scrollTop = 0;
  }

  /** On a narrow page the story is below the list. */
  function read() {
    if (matchMedia('(max-width: 52rem)').matches) { story.scrollIntoView(); story.focus({preventScroll: true}); }
  }

  function move(event) {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const steps = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity};
    if (event.key === 'Enter' && selected) { story.focus(); story.scrollIntoView({block: 'nearest'}); return; }
    if (!(event.key in steps) || !shown.length) return;
    event.preventDefault();
    const now = shown.findIndex(entry => entry.record === selected);
    const next = Math.min(shown.length - 1, Math.max(0, now + steps[event.key]));
    reveal(next);
    choose(shown[next].record);
  }

  function reveal(place) {
    const top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  }

  /** Where the address leads: to an attack or item, or to what belongs to one. */
  function follow() {
    let id = location.hash.slice(1);
    try { id = decodeURIComponent(id); } catch { return; }
    const record = byId.get(id);
    if (!record || record === selected) return;
    tell(record);
    centre();
    get(matchMedia('(max-width: 52rem)').matches ? 'story' : 'transcripts').scrollIntoView();
  }

  // ---- loading ------------------------------------------------------------------------------

  async function unpack(base64) {
    const bytes = Uint8Array.from(atob(base64), sign => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return JSON.parse(await new Response(stream).text());
  }

  /** All that a record says, for the search. */
  function textOf(record) {
    const texts = [];
    const gather = value => {
      if (typeof value === 'string') texts.push(value);
      else if (value && typeof value === 'object') Object.values(value).forEach(gather);
    };
    gather(record);
    return texts.join('\n').toLowerCase();
  }

  function add(record) {
    entries.push({record, text: textOf(record)});
    const own = (record.answers || []).flatMap(answer => [answer.id, answer.critique && answer.critique.id]);
    for (const id of [record.id, record.pair && record.pair.id, ...own]) if (id && !byId.has(id)) byId.set(id, record);
  }

  /** Fills the choices with what there is. */
  function offer() {
    const numbers = new Set(entries.flatMap(entry => Object.keys(entry.record.verdicts)));
    const fill = (id, values, name) => {
      const select = get(id), now = select.value;
      select.replaceChildren(select.firstElementChild, ...values.map(value => make('option', {value}, name(value))));
      select.value = now;
    };
    fill('iteration', [...numbers].sort((a, b) => a - b), iterationName);
    for (const name of ['domain', 'strategy', 'category']) {
      fill(name, [...new Set(entries.map(entry => entry.record[name]))].filter(Boolean).sort(), value => value);
    }
  }

  async function load() {
    for (const id of ['filters', 'panes']) get(id).hidden = false;
    for (const script of document.querySelectorAll('script.records')) {
      (await unpack(script.textContent)).forEach(add);
      script.remove();
      if (entries.length < 500) { offer(); refresh(); }
      if (!selected) follow();
    }
    loaded = true;
    offer();
    refresh();
    follow();
    document.documentElement.dataset.ready = 'yes';
  }

  for (const name of filters) get(name).addEventListener('change', refresh);
  get('changed').addEventListener('change', refresh);
  get('search').addEventListener('input', refresh);
  get('filters').addEventListener('submit', event => event.preventDefault());
  let drawing = false;
  list.addEventListener('scroll', () => {
    if (!drawing) { drawing = true; requestAnimationFrame(() => { drawing = false; draw(); }); }
  });
  list.addEventListener('keydown', move);
  addEventListener('hashchange', follow);
  addEventListener('resize', draw);
  load();
})();
