// The list of runs and traces, and the frame that shows the chosen one. Text only ever goes in as text.
'use strict';
const $ = (id) => document.getElementById(id);
const GROUPS = [['run', 'Runs'], ['trace', 'Traces']];

function show(entry, button) {
  for (const other of document.querySelectorAll('#list [aria-current]')) other.removeAttribute('aria-current');
  button.setAttribute('aria-current', 'true');
  const view = $('view');
  $('state').textContent = `Making the page of ${entry.name} ...`;
  $('state').hidden = false;
  view.onload = () => { $('state').hidden = true; };
  view.title = `${entry.kind} ${entry.name}`;
  view.src = `page?id=${encodeURIComponent(entry.id)}`;
  view.hidden = false;
}

function item(entry) {
  const button = document.createElement('button');
  button.type = 'button';
  button.dataset.id = entry.id;
  button.textContent = entry.name;
  const file = document.createElement('small');
  file.textContent = entry.file;
  button.append(file);
  button.addEventListener('click', () => show(entry, button));
  return button;
}

async function load() {
  const answer = await fetch('runs', { cache: 'no-store' });
  if (!answer.ok) throw new Error(`TensorBoard answered ${answer.status}`);
  const { runs, logdir } = await answer.json();
  const chosen = document.querySelector('#list [aria-current]')?.dataset.id;
  $('list').replaceChildren();
  for (const [kind, title] of GROUPS) {
    const members = runs.filter((r) => r.kind === kind);
    if (!members.length) continue;
    const head = document.createElement('h2');
    head.textContent = title;
    $('list').append(head, ...members.map(item));
  }
  $('where').textContent = logdir;
  $('empty').hidden = runs.length > 0;
  const buttons = [...document.querySelectorAll('#list button')];
  const again = buttons.find((b) => b.dataset.id === chosen);
  if (again) again.setAttribute('aria-current', 'true');
  else if (buttons.length) buttons[0].click();
  document.documentElement.dataset.ready = 'true';
}

const attempt = () => load().catch((e) => {
  $('state').textContent = `The list could not be loaded: ${e.message}`;
  $('state').hidden = false;
});
$('reload').addEventListener('click', attempt);
attempt();
