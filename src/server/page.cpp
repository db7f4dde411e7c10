#include "server/page.h"

namespace proa {

std::string_view page_html() {
  return R"page(<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>Proa</title>
<link rel="icon" href="data:,">
<style>
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--ink:#176b87}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0;display:flex;flex-direction:column;height:100dvh}
header{padding:.6rem 1rem;border-bottom:1px solid var(--line);display:flex;gap:.8rem;align-items:baseline;flex-wrap:wrap}
h1{font-size:1.1rem;margin:0}
small{opacity:.7}
main{flex:1;display:flex;min-height:0}
#chat{flex:1;display:flex;flex-direction:column;min-width:0}
#log{flex:1;overflow:auto;padding:1rem}
.turn{max-width:46rem;margin:0 auto 1rem;white-space:pre-wrap;overflow-wrap:anywhere}
.user{background:var(--soft);border-radius:.6rem;padding:.5rem .8rem}
.error{color:#c33}
details{opacity:.75;border-left:3px solid var(--line);padding-left:.6rem;margin-bottom:.4rem}
form{display:flex;gap:.5rem;padding:.6rem 1rem;border-top:1px solid var(--line)}
#key{font:inherit;border:1px solid var(--line);border-radius:.5rem;background:transparent;color:inherit;padding:.1rem .5rem}
textarea{flex:1;font:inherit;resize:none;padding:.5rem;border:1px solid var(--line);border-radius:.5rem;background:transparent;color:inherit}
button{font:inherit;padding:.4rem 1rem;border:1px solid var(--line);border-radius:.5rem;background:var(--soft);color:inherit}
aside{width:17rem;border-left:1px solid var(--line);overflow:auto;padding:1rem}
figure{margin:0 0 .9rem}
figcaption{display:flex;justify-content:space-between;font-size:.85rem}
svg{width:100%;height:2.6rem;display:block;border-bottom:1px solid var(--line)}
polyline{fill:none;stroke:var(--ink);stroke-width:1.5;vector-effect:non-scaling-stroke}
@media(max-width:44rem){main{flex-direction:column}aside{width:auto;border-left:0;border-top:1px solid var(--line);max-height:30dvh;
display:grid;grid-template-columns:1fr 1fr;gap:0 1rem}}
</style>
<header><h1>Proa</h1><span id="model"></span><small id="about"></small>
<input id="key" type="password" placeholder="API key" aria-label="API key" autocomplete="off" hidden></header>
<main>
<section id="chat"><div id="log" aria-live="polite"></div>
<form id="form"><textarea id="text" rows="2" placeholder="Message" aria-label="Message"></textarea><button id="send">Send</button></form></section>
<aside id="plots" aria-label="What the server does"></aside>
</main>
<script>
'use strict';
const $=id=>document.getElementById(id),make=(tag,cls)=>{const e=document.createElement(tag);if(cls)e.className=cls;return e};
let model='',messages=[],running=null;
// A server with keys refuses all but this page: the field appears, and what is typed stays in this tab.
let key=sessionStorage.getItem('key')??'';
const get=(url,more={})=>fetch(url,{...more,headers:{...more.headers,...(key?{authorization:'Bearer '+key}:{})}}).then(r=>{
  if(r.status===401){$('key').hidden=false;throw new Error('this server asks for a key')}return r});
const meet=()=>get('v1/models').then(r=>r.json()).then(m=>{model=m.data[0].id;$('model').textContent=model;$('key').hidden=true;
  $('about').textContent=m.data[0].max_model_len+' tokens of context';document.title=model;}).catch(e=>$('about').textContent=
  e instanceof TypeError?'the server does not answer':e.message);
$('key').addEventListener('change',()=>{key=$('key').value.trim();sessionStorage.setItem('key',key);meet()});
meet();

async function ask(text){
  messages.push({role:'user',content:text});
  const mine=make('div','turn user');mine.textContent=text;$('log').append(mine);
  const turn=make('div','turn'),thoughts=make('details'),head=make('summary'),thought=make('div'),answer=make('div');
  head.textContent='Thoughts';thoughts.append(head,thought);thoughts.hidden=true;turn.append(thoughts,answer);$('log').append(turn);
  running=new AbortController();$('send').textContent='Stop';
  let said='';
  const show=d=>{const log=$('log'),low=log.scrollHeight-log.scrollTop-log.clientHeight<80;
    const r=d.reasoning_content??d.reasoning;if(r){thoughts.hidden=false;thought.textContent+=r}
    if(d.content){said+=d.content;answer.textContent=said}
    if(low)log.scrollTop=log.scrollHeight};
  try{
    const reply=await get('v1/chat/completions',{method:'POST',signal:running.signal,headers:{'content-type':'application/json'},
      body:JSON.stringify({model,messages,stream:true})});
    if(!reply.ok){const e=await reply.json().catch(()=>({}));throw new Error(e.error?.message??reply.statusText)}
    const reader=reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for(let rest='';;){
      const{value,done}=await reader.read();if(done)break;
      rest+=value;const lines=rest.split('\n');rest=lines.pop();
      for(const line of lines){
        if(!line.startsWith('data: ')||line==='data: [DONE]')continue;
        const chunk=JSON.parse(line.slice(6));
        if(chunk.error)throw new Error(chunk.error.message);
        if(chunk.choices?.length)show(chunk.choices[0].delta)}}
  }catch(e){if(e.name!=='AbortError'){const note=make('div','error');note.textContent=e.message;turn.append(note)}}
  messages.push({role:'assistant',content:said});
  running=null;$('send').textContent='Send';
}
$('form').addEventListener('submit',e=>{e.preventDefault();
  if(running){running.abort();return}
  const text=$('text').value.trim();if(!text||!model)return;$('text').value='';ask(text)});
$('text').addEventListener('keydown',e=>{if(e.key==='Enter'&&!e.shiftKey&&!e.isComposing){e.preventDefault();if(!running)$('form').requestSubmit()}});

// Name, what is shown of it, and how it comes from two readings of /metrics that are `t` seconds apart.
const rate=n=>(a,b,t)=>Math.max(0,(b[n]??0)-(a[n]??0))/t;
const mean=n=>(a,b)=>{const c=(b[n+'_count']??0)-(a[n+'_count']??0);return c>0?1e3*((b[n+'_sum']??0)-(a[n+'_sum']??0))/c:0};
const now=(n,scale=1)=>(a,b)=>scale*(b[n]??0);
const plots=[['decode','tok/s',rate('vllm:generation_tokens_total')],['prefill','tok/s',rate('vllm:prompt_tokens_total')],
  ['time per token','ms',mean('vllm:inter_token_latency_seconds')],['first token','ms',mean('vllm:time_to_first_token_seconds')],
  ['running','',now('vllm:num_requests_running')],['waiting','',now('vllm:num_requests_waiting')],
  ['KV cache','%',now('vllm:kv_cache_usage_perc',100)],['memory','MB',now('process_resident_memory_bytes',1e-6)]]
  .map(([name,unit,value])=>{const f=make('figure'),c=make('figcaption'),n=make('span'),v=make('span');n.textContent=name;c.append(n,v);
    const s=document.createElementNS('http://www.w3.org/2000/svg','svg'),l=document.createElementNS(s.namespaceURI,'polyline');
    s.setAttribute('viewBox','0 0 119 40');s.setAttribute('preserveAspectRatio','none');s.append(l);f.append(c,s);$('plots').append(f);
    return{unit,value,v,l,past:[]}});
function parse(text){const all={};for(const line of text.split('\n')){if(!line||line[0]==='#')continue;
  const at=line.lastIndexOf(' '),name=line.slice(0,at).replace(/\{.*/,'');if(/le="/.test(line))continue;all[name]=(all[name]??0)+Number(line.slice(at+1))}return all}
let before=null,then=0;
async function look(){
  try{const text=await(await get('metrics')).text(),all=parse(text),at=performance.now();
    if(before)for(const p of plots){const x=p.value(before,all,(at-then)/1e3);p.past.push(x);if(p.past.length>120)p.past.shift();
      p.v.textContent=(x>=100?x.toFixed(0):x.toFixed(1))+' '+p.unit;const top=Math.max(...p.past,1e-9);
      p.l.setAttribute('points',p.past.map((y,i)=>(120-p.past.length+i)+','+(38-36*y/top)).join(' '))}
    before=all;then=at}catch{}
  setTimeout(look,document.hidden?5000:1000)}
look();
</script>
)page";
}

}  // namespace proa
