import sys, time, traceback
from sim import scenario
from sim.world import World
from sim.checker import Violation
def main():
    a,b=int(sys.argv[1]),int(sys.argv[2])
    t=time.time(); bad=0; fr=0
    for seed in range(a,b):
        s=scenario.of(seed)
        w=World(s)
        try:
            w.run()
        except Violation as v:
            bad+=1
            print(seed, round(w.now,3), str(v)[:400])
        except Exception:
            bad+=1
            print(seed, round(w.now,3)); traceback.print_exc()
        fr+=len(w.trace)
    d=time.time()-t
    print((b-a)/d,'seeds/s',bad,'bad',fr/(b-a),'records')
